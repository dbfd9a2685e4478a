"""A pytest plugin that keeps every tenth test of large files: under a sanitizer one case in ten takes minutes enough."""

from __future__ import annotations

from collections import Counter

import pytest

LARGE, KEPT = 40, 10


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sizes = Counter(item.path for item in items)
    places: Counter[object] = Counter()
    kept, dropped = [], []
    for item in items:
        place = places[item.path]
        places[item.path] += 1
        (kept if sizes[item.path] < LARGE or place % KEPT == 0 else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
