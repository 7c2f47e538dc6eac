"""Configurations that an instance knows by name: the files, or links to files, in `configs/` of its home.

A link, so that a file stays where its owner edits it, and its relative paths stay right.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from orchestrator.errors import ConfigError

FOLDER = "configs"


def known(home: Path) -> dict[str, Path]:
    """The file of each known configuration, by name; links that lead nowhere are left out."""
    return {file.stem: file.resolve() for file in sorted((home / FOLDER).glob("*.toml")) if file.is_file()}


def remember(home: Path, file: Path) -> str:
    """Know the file by its name without `.toml`; another of the name that was registered before is known no more.

    Raises:
        ConfigError: a file of that name lies in the folder itself.
    """
    link, target = home / FOLDER / f"{file.stem}.toml", file.resolve()
    if link.resolve() == target:
        return file.stem
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is another configuration of the same name. Rename {file}, or remove that one.")
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_suffix(".new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
    return file.stem


def file_of(home: Path, name: str) -> Path:
    """The file that is known by the name.

    Raises:
        ConfigError: none is; the message names those that are.
    """
    found = known(home)
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, 1)
    raise ConfigError(
        f"No configuration {name!r} in {home / FOLDER} on this machine; known are {', '.join(found) or 'none'}."
        + (f" Did you mean {near[0]}?" if near else "")
        + " `orchestrator register --config FILE` makes a file known."
    )
