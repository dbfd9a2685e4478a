"""The rates of the device at hand: measured once, and kept on disk."""

from __future__ import annotations

import torch

from lnb.planning import cache, calibration
from lnb.planning.rates import Rates, default_rates


def rates_for(device: torch.device) -> Rates:
    """The rates of ``device``: from the cache, else measured in about a second and cached, else :func:`default_rates`."""
    key = calibration.key(device)
    found = cache.load(key)
    if found is not None:
        return found
    try:
        measured = calibration.measure(device)
    except torch.AcceleratorError:  # the device is in an undefined state
        raise
    except (RuntimeError, NotImplementedError, ValueError):  # no memory left, an operation the device does not have
        return default_rates(device)
    cache.store(key, measured)
    return measured
