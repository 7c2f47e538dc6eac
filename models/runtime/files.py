"""Files that stand in two places; for jobs and for the orchestrator, which may import this package, not the reverse."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system can't: another disk, or one without hard links.

    Weights and shards are too large to be copied on each of their ways. Neither name may be written through afterwards.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
