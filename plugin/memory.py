"""Memory: what this process holds, and what there is for more. In MB of 2**20 bytes; None where the system does not
tell."""

import contextlib
import os
from pathlib import Path

_MEGABYTE = 2**20


def resident() -> float | None:
    """What this process holds now."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE
    return None


def available(root: Path = Path("/")) -> float | None:
    """What may still be taken before the system swaps or ends processes, by the machine and by our control group (a
    container's limit). root: where /proc and /sys are."""
    found = [free for free in (_of_machine(root), _of_group(root / "sys/fs/cgroup")) if free is not None]
    return min(found, default=None)


def _of_machine(root: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) / 1024  # kB
    with contextlib.suppress(OSError, AttributeError, ValueError):  # no such figure, as on macOS and Windows
        pages = os.sysconf("SC_AVPHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE if pages >= 0 else None
    return None


def _of_group(group: Path) -> float | None:
    """Under the limit of cgroup 2; files that the system only keeps for speed are given up when needed."""
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no limit is the word "max"
        most, taken = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kept = next(line for line in (group / "memory.stat").read_text().splitlines() if line[:14] == "inactive_file ")
        return max(0, most - taken + int(kept.split()[1])) / _MEGABYTE
    return None
