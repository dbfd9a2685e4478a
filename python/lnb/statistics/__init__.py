"""What a step knows about the inputs of layers: running averages, and the factors that are refreshed from them.

:mod:`running` has the averages and :mod:`arenas` the tensors in which all layers keep them. :mod:`schedule` says which steps
gather which layers' moments. :mod:`refresh` makes factors of the averages (:mod:`factored` and :mod:`orthogonalize` have the
mathematics), on NVIDIA GPUs by :mod:`device_refresh`, for prepared steps on CPUs by :mod:`prepared_refresh`, and shared out over
ranks by :mod:`split_refresh`. :mod:`tracked` is what :mod:`lnb.moments` and reports read.
"""
