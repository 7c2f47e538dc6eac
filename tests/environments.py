"""Virtual environments that hold a few distributions and what those require, linked from this one and not copied."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import venv
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, names: set[str]) -> Path:
    """A new environment with links to these distributions and their requirements alone; gives its site-packages."""
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    for distribution in required(names).values():
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(name)))
            if source.exists() and not (site / name).exists():
                (site / name).symlink_to(source)
    return site


def required(names: set[str]) -> dict[str, metadata.Distribution]:
    """The distributions of that name and everything they require, with the extras that are asked for on the way."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, "") for name in names]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on another platform only
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, each) for each in ("", *requirement.extras)]
    return found
