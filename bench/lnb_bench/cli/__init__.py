"""The command line ``lnb-bench``."""

from __future__ import annotations
