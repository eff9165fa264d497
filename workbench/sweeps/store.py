"""Where stored runs were opened before there was `workbench.open_run`: kept for the scripts that name it."""

from workbench.runs.opening import open_run

__all__ = ["open_run"]
