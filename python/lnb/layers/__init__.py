"""The kinds of layers that LNB claims, one file each: how a layer is probed, and what the step and the planner ask of it.

A new kind is a subclass of :class:`lnb.layers.kind.LayerKind` in a file of its own, and one line in :mod:`lnb.layers.registry`.
"""
