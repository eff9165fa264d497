"""Pocket: its configuration, its training, its card."""
