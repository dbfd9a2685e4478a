"""Shards of layers (``fully_shard``, tensor parallelism): every rank solves the rows, or columns, that it has.

The metric of a layer's inputs is the same for each of its rows, so a direction needs no row of another rank. What ranks tell each
other in a step is small: second moments of their samples, and a few sums per layer from which all take the same step length.
No weight, gradient or direction is gathered. Columns, of which :mod:`lnb.sharded.columns` tells, need a few numbers per row.

:mod:`mesh` finds the ranks, :mod:`local` makes layers of the rows here, :mod:`step` makes their steps, :mod:`state` is what
checkpoints get, and :mod:`parallel` is the forward pass of a layer whose weight is a ``DTensor``.
"""
