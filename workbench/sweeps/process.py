"""Settings of a whole process that make sweeps faster; the command line makes them, the library never does.

OpenMP's threads wait for each other by spinning, so that beside any other program on the same cores a sweep of small
batches was measured to take five times as long. glibc gives large freed blocks back to the system at once, and a sweep
asks for blocks of the same sizes again a moment later: mapping them in anew took a tenth to a quarter of its time.
Neither can be put back, so that they are for programs that end with what they do. A notebook can make them too, before
anything else is imported.
"""

import ctypes
import os
import platform
import signal

# mallopt's parameters and their values; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST_FROM_HEAP = 32 * 2**20  # as far as glibc goes by itself, for programs that free blocks so large
KEPT = 2**30


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM); its exit status is 143."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated(128 + number)


def settle_process() -> None:
    """Have idle threads sleep, and freed memory kept for the next block that asks. To be called before torch loads.

    What the user has set stands. SIGTERM ends the process as Ctrl-C does, with a last word on what is stored.
    """
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (MMAP_THRESHOLD, LARGEST_FROM_HEAP),
            (TRIM_THRESHOLD, KEPT),
            (TOP_PAD, 2 * LARGEST_FROM_HEAP),
        ):
            libc.mallopt(parameter, value)
