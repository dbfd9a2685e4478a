"""What a step costs on this device, and which statistics, solver and state fit into a budget of time and memory."""

from lnb.planning.measured import rates_for
from lnb.planning.rates import Rates

__all__ = ["Rates", "rates_for"]
