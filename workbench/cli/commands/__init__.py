"""The sub-commands: a function each, which names its options and hands them on; nothing heavy is imported before."""

from workbench.cli.commands import adversary, masking, runs, trials

__all__ = ["adversary", "masking", "runs", "trials"]
