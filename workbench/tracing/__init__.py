"""Tracing: how the signal flows from picture and text to the last position. Begin with `workbench.trace`."""
