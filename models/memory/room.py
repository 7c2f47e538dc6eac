"""Whether what a job will hold fits where it runs, said before anything is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.memory.needs import Needs
from models.memory.passes import apart
from models.runtime.job import Job, JobError

TOLERANCE = 0.15
"""How far the table may lie from what is measured (docs/explanation/memory.md)."""
GIB = 1 << 30
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Room:
    """Bytes that are free: in the host's memory, and on the card where a GPU computes."""

    host: int
    card: int | None = None

    @classmethod
    def of(cls, device: torch.device) -> Room:
        """What is free now; inside a container no more than its limit leaves."""
        card = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        return cls(_free_on_host(), card)


def check_room(job: Job, needs: Callable[[], Needs], folders: list[Path]) -> None:
    """Refuse a job that can't fit; say on stderr where it may not.

    What certainly fits, by the size of its folders of weights, is not reckoned, which takes seconds. `needs` is called
    in a process of its own, and must be picklable. With `check_memory` false in its spec nothing is looked at.

    Raises:
        JobError: by more than the table's tolerance there is less memory than it needs.
    """
    room = Room.of(job.device)
    if not job.spec.get("check_memory", True) or certainly_fits(folders, room):
        return
    try:
        table = apart(needs)
    except Exception as error:
        # A family that can't be run without memory is run with it.
        print(f"note: the memory that this takes is not known ({type(error).__name__}: {error}).", file=sys.stderr)
        return
    for what, needed, free in compared(table, room):
        if needed > free:
            told = f"{table.job} needs {gib(needed)} of {what}, and {gib(free)} are free here"
            if needed * (1 - TOLERANCE) > free:
                raise JobError(
                    f"{told}: {parts(table, room)}. {table.lower} `orchestrator doctor` shows the table; "
                    "ORCHESTRATOR_MEMORY_CHECK=off tries it all the same."
                )
            print(f"note: {told}; it may end for want of memory.", file=sys.stderr)


def certainly_fits(folders: list[Path], room: Room) -> bool:
    """Whether the weights in these folders are so small that no table is needed: a hundredth of the free memory."""
    stored = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return stored * 100 < min(room.host, room.host if room.card is None else room.card)


def compared(table: Needs, room: Room) -> list[tuple[str, int, int]]:
    """(which memory, bytes needed, bytes free) of each memory there is."""
    if room.card is None:
        return [("memory", table.together, room.host)]
    return [("GPU memory", table.on(host=False), room.card), ("the host's memory", table.on(host=True), room.host)]


def parts(table: Needs, room: Room) -> str:
    """The lines of the table in one, the largest first; those of the host alone are marked beside a GPU."""
    lines = sorted(table.lines, key=lambda line: -line.bytes)
    marked = room.card is not None
    return ", ".join(
        f"{line.what}{' (host)' if marked and line.on_host else ''} {gib(line.bytes)}" for line in lines if line.bytes
    )


def gib(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.0f} MiB"


def _free_on_host() -> int:
    """Bytes that this process may still take."""
    told = Path("/proc/meminfo")
    if not told.exists():
        # Not Linux: all there is, since how much of it is free nobody says alike.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = dict(line.split(":", 1) for line in told.read_text().splitlines())
    free = 1024 * sum(int(memory[name].split()[0]) for name in ("MemAvailable", "SwapFree") if name in memory)
    for limit, used in _CGROUPS:
        try:
            text = Path(limit).read_text().strip()
            if text != "max":
                free = min(free, int(text) - int(Path(used).read_text()) + _cached(Path(used).parent))
        except (OSError, ValueError):
            continue
    return free


def _cached(group: Path) -> int:
    """Bytes of files in a container's memory, which it gives up when they are needed."""
    numbers = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(numbers.get("inactive_file", numbers.get("total_inactive_file", 0)))
