"""The most memory that a stretch of a program needed, beyond what it held before. Standard library, torch on a GPU."""

from __future__ import annotations

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


class Memory:
    """Growth of the resident set on Linux; on a GPU of the memory that torch allocated."""

    def __init__(self, gpu: bool = False) -> None:
        self.gpu = gpu
        self.before_mb = 0.0

    def begin(self) -> None:
        """From here on."""
        if self.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before_mb = torch.cuda.memory_allocated() / 2**20
            return
        self.before_mb = _status_mb("VmRSS")
        # Sets the high-water mark back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_mb(self) -> float:
        """Highest since then, less what was held then."""
        if self.gpu:
            import torch

            return torch.cuda.max_memory_allocated() / 2**20 - self.before_mb
        return _status_mb("VmHWM") - self.before_mb


def _status_mb(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"{STATUS} has no {name}"
    return int(found[1]) / 1024
