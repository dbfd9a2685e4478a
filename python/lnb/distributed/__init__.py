"""Training on several ranks, each of which has the whole model: what they exchange before a step.

:mod:`ranks` finds out which ranks train together, and :mod:`exchange` adds their second moments (:mod:`moment_sum` lays them out
in one buffer). :mod:`identity` compares the ranks' models and settings, and :mod:`late_flag` reads a finding of the device a step
later. Ranks that have parts of the model are in :mod:`lnb.sharded`.
"""
