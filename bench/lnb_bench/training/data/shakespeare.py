"""Tiny Shakespeare, by characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lnb_bench.training.data.files import data_folder, require
from lnb_bench.training.data.splits import TextSplit
from lnb_bench.training.errors import DataError

NAME = "tinyshakespeare.txt"
REMEDY = f"Put {NAME} (the 1.1 MB text of the char-rnn examples) there; it cannot be fetched by itself"


def load_shakespeare(data: Path | None = None, *, context: int = 128) -> tuple[TextSplit, TextSplit, int]:
    """The first 90% for training, the rest for validation, and the number of distinct characters.

    Raises:
        DataError: the file is missing or too short.
    """
    path = require(data_folder(data), NAME, REMEDY)
    try:
        text = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    cut = len(text) * 9 // 10
    if len(text) - cut <= context:
        raise DataError(f"{path}: {len(text)} bytes are too few for windows of {context} characters; replace the file")
    alphabet, tokens = np.unique(text, return_inverse=True)
    encoded = torch.from_numpy(tokens.astype(np.uint8))
    return TextSplit(encoded[:cut], context), TextSplit(encoded[cut:], context), len(alphabet)
