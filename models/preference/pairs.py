"""Preference pairs kept on disk, so that memory does not grow with a comparison set.

Read next: `models/preference/comparison_set.py`, which fills one for each split.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from models.preference.comparison_set import TokenPair

BUFFER_BYTES = 1 << 20
IDS = ("prefix_ids", "better_ids", "worse_ids")


class PairFile(Sequence["TokenPair"]):
    """A growing sequence of pairs in a file without a name: it is gone with the process, however that ends.

    In memory are the place and the sizes of each pair, 24 bytes. Reading one costs
    about 10 µs, a thousandth of a training step's work on it. Read with `pread` and
    not mapped, so that what was read does not count as this process's memory.
    """

    def __init__(self, directory: Path, of: type[TokenPair]) -> None:
        self._of = of
        self._rest = [field.name for field in dataclasses.fields(of) if field.name not in IDS]
        self._file = tempfile.TemporaryFile(dir=directory, buffering=BUFFER_BYTES)  # noqa: SIM115, as long as this lives
        self._starts = array("q", [0])
        self._sizes = array("i")  # four a pair: ids of the prefix, of both sides, bytes of the rest
        self._unwritten = False

    def append(self, pair: TokenPair) -> None:
        """Add a pair at the end."""
        ids = [getattr(pair, name) for name in IDS]
        rest = json.dumps([getattr(pair, name) for name in self._rest]).encode()
        # Position said outright: reading never moves it.
        self._file.seek(self._starts[-1])
        self._file.write(b"".join([*(part.tobytes() for part in ids), rest]))
        self._sizes.extend([*map(len, ids), len(rest)])
        self._starts.append(self._starts[-1] + sum(part.itemsize * len(part) for part in ids) + len(rest))
        self._unwritten = True

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        if self._unwritten:
            self._file.flush()
            self._unwritten = False
        index %= len(self)
        start, end = self._starts[index], self._starts[index + 1]
        data = os.pread(self._file.fileno(), end - start, start)
        values: dict[str, object] = {}
        position = 0
        for name, count in zip(IDS, self._sizes[4 * index : 4 * index + 3], strict=True):
            values[name] = ids = array("i")
            ids.frombytes(data[position : position + count * ids.itemsize])
            position += count * ids.itemsize
        values |= zip(self._rest, json.loads(data[position:]), strict=True)
        return self._of(**values)  # type: ignore[arg-type]
