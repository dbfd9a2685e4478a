"""The command line ``lnb``."""

from __future__ import annotations
