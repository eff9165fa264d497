"""Sweeps: masking every head on every prompt, planned, carried out and resumed."""
