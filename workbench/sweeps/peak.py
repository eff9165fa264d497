"""How much memory is in use at the most: of the GPU a model runs on, or of this process."""

from contextlib import suppress
from pathlib import Path

import psutil
import torch

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Begin anew; where the system cannot, `peak_bytes` counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not on this system, or not for this user
            CLEAR.write_text("5")  # proc(5): the peak of the resident set becomes what is resident now


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since `reset_peak`; what is in use now, where the system keeps no peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    now = psutil.Process().memory_info()
    return int(getattr(now, "peak_wset", now.rss))


def held_bytes(device: torch.device) -> int:
    """Memory in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
