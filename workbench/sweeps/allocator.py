"""Freed memory kept for the length of a sweep on a CPU.

glibc gives large freed blocks back to the system at once, and a sweep asks for blocks of the same sizes again a moment
later: mapping them in anew took a tenth to a quarter of a sweep's time on the models tried here.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# mallopt's parameters and their values; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST_FROM_HEAP = 32 * 2**20  # as far as glibc goes by itself, for programs that free blocks so large
KEPT = 2**30


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next block that asks, and give it back at the end; nothing but on a CPU with glibc."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, LARGEST_FROM_HEAP)
    libc.mallopt(TRIM_THRESHOLD, KEPT)
    libc.mallopt(TOP_PAD, 2 * LARGEST_FROM_HEAP)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_FROM_HEAP)
        libc.mallopt(TOP_PAD, 128 * 2**10)
        libc.malloc_trim(0)
