"""The reference manual of Python, which the interpreter carries: a text unlike Shakespeare, to adapt a language model to."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from lnb_bench.training.data.splits import TextSplit
from lnb_bench.training.errors import DataError

ASCII = 128


def load_manual(*, context: int = 128) -> tuple[TextSplit, TextSplit]:
    """The manual's topics in alphabetical order as ASCII, the first 90 % for training, the rest for validation.

    Python versions have slightly different manuals, and results name the version.

    Raises:
        DataError: this Python comes without it.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError) as error:
        raise DataError(
            "pydoc_data/topics.py: this Python has no manual; install its standard library whole"
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    tokens = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    cut = len(tokens) * 9 // 10
    if len(tokens) - cut <= context:
        raise DataError(f"pydoc_data/topics.py: {len(tokens)} characters are too few for windows of {context}")
    return TextSplit(tokens[:cut], context), TextSplit(tokens[cut:], context)
