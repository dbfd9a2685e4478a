"""Faster routes of the same step: the default preset in a few calls, whatever the number of layers.

:mod:`lnb.step` tells what a step computes, and takes every setting on every device. :mod:`prepared` serves the default preset on
CPUs and :mod:`fused` on NVIDIA GPUs. Both read the addresses of gradients, weights and states from tables that are made once;
:mod:`standing` notices when a table no longer describes the tensors at hand.
"""
