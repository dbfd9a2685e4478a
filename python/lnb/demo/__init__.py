"""The demonstration: small problems, LNB next to AdamW on each, and a picture of the curves."""

from __future__ import annotations
