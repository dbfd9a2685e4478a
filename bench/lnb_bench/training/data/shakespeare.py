"""Tiny Shakespeare, by characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lnb_bench.training.data.files import Array, data_folder, require
from lnb_bench.training.data.splits import TextSplit
from lnb_bench.training.errors import DataError

NAME = "tinyshakespeare.txt"
REMEDY = f"Put {NAME} (the 1.1 MB text of the char-rnn examples) there; it cannot be fetched by itself"


def load_shakespeare(data: Path | None = None, *, context: int = 128) -> tuple[TextSplit, TextSplit, int]:
    """The first 90% for training, the rest for validation, and the number of distinct characters.

    Raises:
        DataError: the file is missing or too short.
    """
    text = _read(data, context)
    alphabet, tokens = np.unique(text, return_inverse=True)
    return *_cut(tokens.astype(np.uint8), context), len(alphabet)


def load_shakespeare_bytes(data: Path | None = None, *, context: int = 128) -> tuple[TextSplit, TextSplit]:
    """The same with the characters' ASCII codes as tokens.

    Raises:
        DataError: as before, or the text is not ASCII.
    """
    text = _read(data, context)
    if text.max() >= 128:
        raise DataError(f"{NAME}: holds bytes that are not ASCII; replace the file")
    return _cut(text, context)


def _read(data: Path | None, context: int) -> Array:
    path = require(data_folder(data), NAME, REMEDY)
    try:
        text = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(text) - _first_of_validation(text) <= context:
        raise DataError(f"{path}: {len(text)} bytes are too few for windows of {context} characters; replace the file")
    return text


def _first_of_validation(tokens: Array) -> int:
    return len(tokens) * 9 // 10


def _cut(tokens: Array, context: int) -> tuple[TextSplit, TextSplit]:
    encoded, cut = torch.from_numpy(tokens), _first_of_validation(tokens)
    return TextSplit(encoded[:cut], context), TextSplit(encoded[cut:], context)
