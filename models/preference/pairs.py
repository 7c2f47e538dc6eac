"""Preference pairs as ids, and many of them kept on disk, so that memory does not grow with a comparison set.

Read next: `models/preference/comparison_set.py`, which fills one for each split.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from models.chat.refusals import Refusals

BUFFER_BYTES = 1 << 20
IDS = ("prefix_ids", "better_ids", "worse_ids")


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair as ids: what both sides share, then each side up to its end-of-context id."""

    id: str
    source: str
    question: str
    prefix_ids: array[int]  # the longest common beginning; may reach into the replies
    better_ids: array[int]  # what follows the prefix on the better side, at least the end-of-context id
    worse_ids: array[int]
    rater: str | None = None  # id of whoever chose; None where the record does not say
    tranche: str | None = None  # what produced the replies; None where the record does not say
    turn: int | None = None  # 1 for a reply to the opening message; None where the record does not say
    dialogue: int | None = None  # names the dialogue: pairs that share it are likely to share their beginning
    strength: int | None = None  # 1 (slightly) to 4 (much better); None where unknown
    tie: str | None = None  # "tie" or "cant_tell" where the rater chose neither; the sides are then in no order

    @property
    def better_tokens(self) -> int:
        """Tokens of the whole better side, prompt and end-of-context id included."""
        return len(self.prefix_ids) + len(self.better_ids)

    @property
    def worse_tokens(self) -> int:
        """Tokens of the whole worse side, prompt and end-of-context id included."""
        return len(self.prefix_ids) + len(self.worse_ids)

    @property
    def length_difference(self) -> int:
        """Tokens(better) − tokens(worse)."""
        return len(self.better_ids) - len(self.worse_ids)

    def swapped(self) -> TokenPair:
        """The same pair with the other side better; only the shuffled-labels control asks for this."""
        return replace(self, better_ids=self.worse_ids, worse_ids=self.better_ids)


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


@dataclass
class TokenPairs:
    """All pairs of one split that can be used, in the order of the shards, and how many can't."""

    pairs: list[TokenPair] | PairFile = field(default_factory=list)
    num_too_long: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    """Of the chat template."""
