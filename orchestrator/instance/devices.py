"""On what jobs compute here: `auto` is resolved where a stage begins, so that its fingerprint says one thing.

Not when a cycle is opened: training may run on another machine than the one that opened it.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

AUTO, CPU, GPU = "auto", "cpu", "cuda"
GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where none of these is there, no torch finds a GPU: drivers of NVIDIA, of AMD, and of Windows' subsystem."""
_ASK = "import torch; print(torch.cuda.is_available())"


@functools.cache
def resolved(device: str, python: str | None = None) -> str:
    """`cpu` or `cuda` for what `ORCHESTRATOR_DEVICE` says, as the jobs of this interpreter will find it.

    Its torch is asked, which takes some seconds, once in a process, and only where there may be a GPU at all.
    """
    if device != AUTO:
        return device
    if not any(Path(node).exists() for node in GPU_NODES):
        return CPU
    asked = subprocess.run([python or sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    return GPU if asked.stdout.split()[-1:] == ["True"] else CPU
