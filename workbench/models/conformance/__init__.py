"""Proof that a model's masks act as they should: `at_load` when it is loaded, `report` for `workbench check`."""
