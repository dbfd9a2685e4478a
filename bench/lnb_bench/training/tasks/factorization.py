"""The factorisation of an ill-conditioned matrix."""

from __future__ import annotations

from functools import partial

from lnb.demo.problems import MATRIX_SHAPE, matrix_data
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.models import Factors
from lnb_bench.training.objectives import LeastSquares
from lnb_bench.training.tasks.base import Task, TaskOptions, choose


def matrix_factorization(options: TaskOptions) -> Task:
    """Minimise ``E ||W2 W1 x - A x||^2 / 2`` over ``W1`` ``[width, 6]`` and ``W2`` ``[10, width]``, in float64.

    ``A`` ``[10, 6]`` has random orthonormal singular vectors and singular values that fall geometrically from 1 to
    ``1 / condition`` (default 1e5); the 1,000 inputs ``x`` are standard normal, all of them in every step. With a
    ``width`` of 6 (the default) or more the loss can reach zero, so all that is measured is optimisation: the relative
    error ``||W2 W1 X - A X||_F / ||A X||_F`` on the same data. Matrix and data are fixed; a run's seed varies the
    initial factors. After the experiment of arXiv:2502.01131, figure 1.
    """
    choose(options, "matrix-factorization", ("factors",))
    condition = options.take("condition", condition=1e5)["condition"]
    if not condition >= 1:
        raise ValueError(f"condition={condition!r} must be at least 1")
    outputs, inputs = MATRIX_SHAPE
    split = VectorSplit(*matrix_data(condition))
    build = partial(Factors, inputs, outputs, **options.take("width", width=inputs))
    return Task("matrix-factorization", split, split, build, LeastSquares(), batch_size=len(split), steps=500)
