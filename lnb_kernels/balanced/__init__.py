"""Directions of the trust region "balanced"."""
