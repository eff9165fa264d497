"""The `workbench` command. One sub-command a function of the library, and nothing here but its options.

Exit status: 0 on success, 1 on a mistake of the user (one message, no traceback), 2 on bad usage, 130 after Ctrl-C, 143
after SIGTERM.
"""

import sys

from rich.console import Console
from rich.text import Text

from workbench.cli import commands
from workbench.cli.app import app
from workbench.errors import WorkbenchError, lacking
from workbench.plain import plain
from workbench.sweeps.process import settle_process

__all__ = ["app", "commands", "main"]


def main() -> None:
    """Run the command; turn a user's mistake into one message and status 1."""
    settle_process()
    errors = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except WorkbenchError as error:
        errors.print(Text("Error: ", "red") + Text(plain(error, keep="\n\t"), ""), soft_wrap=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        errors.print(Text("Error: ", "red") + Text(plain(lacking(error)), ""), soft_wrap=True)
        sys.exit(1)
