"""The error for an exchange that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def naming(what: str, ranks: int, left: str) -> Iterator[None]:
    """Say what an exchange that fails was for.

    Args:
        what: what is exchanged.
        ranks: how many take part.
        left: a sentence that says what the step had changed before.

    Raises:
        RuntimeError: the exchange failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"step(): the exchange of {what} with {ranks} ranks failed: one of them may have ended, or be more than the "
            f"group's timeout behind. {left}. ({error})"
        ) from error
