"""What a training can be asked about itself, without slowing it down.

:mod:`diagnostics` keeps what the last step did to every layer, :mod:`input_figures` tells what the inputs of layers are like,
:mod:`overhead` measures the optimizer's share of a training step, and :mod:`watch_file` is the file that ``lnb watch`` shows.
:mod:`lnb.coverage` and :mod:`lnb.plan` report what each parameter gets and what that costs.
"""
