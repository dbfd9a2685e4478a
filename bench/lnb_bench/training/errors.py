"""What goes wrong in a training run through no fault of the code; messages name the file or value, and the remedy."""

from __future__ import annotations


class TrainingError(Exception):
    """A run cannot start or go on; the message is meant for the person who started it."""


class DataError(TrainingError):
    """A data file is missing, damaged or of the wrong kind."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class Diverged(TrainingError):
    """The loss is not a number any more."""
