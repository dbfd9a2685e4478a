"""What an optimizer keeps from step to step, and how it is saved and loaded.

:mod:`schema` states every key once: owner, shape, dtype and time. :mod:`serialization` saves and loads, :mod:`checks` refuses a
saved state that is not whole, :mod:`portable` writes the form of ``torch.distributed.checkpoint``, and :mod:`whole` reads the
state of shards into whole parameters.
"""
