"""What every test shares: fixed seeds, and fresh memory that is never accidentally right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a change is judged by its own faults. `--hypothesis-profile default` explores.
settings.register_profile("reproducible", derandomize=True)
settings.load_profile("reproducible")

# Triton decides between compiler and interpreter when it is imported, which much of torch.utils does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is cached on disk apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LNB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every ``torch.empty`` with NaN (integers: the largest value), so that reading before writing shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global state
    torch.manual_seed(0)
