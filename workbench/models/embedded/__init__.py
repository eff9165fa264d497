"""The models that ship with the package: Pocket (trained) and Planted (written)."""
