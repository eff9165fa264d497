"""Engines: the ways to compute the same cells. `registry` has them by name."""
