"""What a device can do: the rate of a large matrix product and of a large copy, which others are held against."""

import time

import torch
from torch.utils.benchmark import Timer

KEPT_UP = 4.0  # seconds; an H200 did 786 TFLOP/s at first, and 655 from the second second on, at its power limit


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 5) -> float:
    """Operations a second of one large matrix product on this device, with the threads in use.

    The best of a few on a CPU; on other devices what they keep up, as a sweep has to.
    """
    size = size if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("one @ other", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    if device.type == "cpu":
        return 2 * size**3 / min(timer.timeit(1).mean for _ in range(repeats))
    end = time.monotonic() + KEPT_UP
    while time.monotonic() < end:
        seconds = timer.timeit(100).mean
    return 2 * size**3 / seconds


def copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second that a large copy reads and writes, both counted; the best of a few."""
    size = 2**26 if device.type == "cpu" else 2**32
    one = torch.ones(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    timer = Timer("other.copy_(one)", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    return 2 * size / min(timer.timeit(1).mean for _ in range(repeats))
