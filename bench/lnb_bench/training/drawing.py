"""matplotlib, imported where a picture is drawn: training needs none."""

from __future__ import annotations

from typing import Any

from lnb_bench.training.errors import TrainingError


def pyplot() -> Any:
    """``matplotlib.pyplot``, drawing into files only.

    Raises:
        TrainingError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise TrainingError("pictures need matplotlib: pip install 'lnb-kernels[cli]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
