"""Runs: what masking heads measured: its variables, its job, and how it is stored, opened and read."""
