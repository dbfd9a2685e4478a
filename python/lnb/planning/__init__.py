"""What a step costs on this device, and which statistics, solver and state fit into a budget of time and memory."""

from lnb.planning.rates import Rates, rates_for

__all__ = ["Rates", "rates_for"]
