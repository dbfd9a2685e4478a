"""What goes wrong in a run for reasons that only its options explain, as errors with a message that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lnb_bench.training import TrainingError


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn every form of "no memory left" into a :class:`TrainingError` that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            sign in text for sign in _NO_MEMORY
        ):
            raise
        raise TrainingError(
            f"there is not enough memory for this run ({text or type(error).__name__}); make the model (--width, --depth, "
            f"--context) or --batch-size smaller"
        ) from error


# How torch says it on a CPU, where it has no class for it.
_NO_MEMORY = ("allocate memory", "not enough memory", "size calculation overflowed", "unpacking long")


@contextmanager
def described_by(file: Path | None) -> Iterator[None]:
    """Name the ``file`` (None: there is none) that holds a run's options in the errors that they raise."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if file is None:
            raise
        raise TrainingError(f"{error} (the run's options stand in {file})") from error


@contextmanager
def unchecked_settings(settings: dict[str, Any] | None) -> Iterator[None]:
    """Turn what an optimizer raises in its steps into a message, where settings went to it that only it can check."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        if not settings:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise TrainingError(
            f"the run failed with the settings {given} ({type(error).__name__}: {error}); correct --set"
        ) from error
