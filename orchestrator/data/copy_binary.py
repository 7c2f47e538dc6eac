"""Reads the binary format of Postgres' COPY: no escaping, so text costs neither side a look at every byte.

Source: the PostgreSQL manual, COPY, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
HEADER_BYTES = len(SIGNATURE) + 8
_INT16 = struct.Struct("!h")
_INT32 = struct.Struct("!i")
_TWO_INT32 = struct.Struct("!ii")


class BinaryRows:
    """A file to copy into: calls `take` with the fields of each row, None for NULL.

    A field is a view that is only valid during the call. It does not matter how the stream is cut into writes.
    """

    def __init__(self, take: Callable[[list[memoryview | None]], None]) -> None:
        self._take = take
        self._pending = bytearray()
        self._past_header = False

    def write(self, data: bytes) -> int:
        """Take more of the stream; whole rows are handed on at once."""
        self._pending += data
        with memoryview(self._pending) as view:
            done = self._rows(view)
        if done:
            del self._pending[:done]
        return len(data)

    def _rows(self, view: memoryview) -> int:
        """Hand on the whole rows in the view; returns how many bytes they took."""
        place = 0
        if not self._past_header:
            if len(view) < HEADER_BYTES:
                return 0
            _, extension = _TWO_INT32.unpack_from(view, len(SIGNATURE))
            if view[: len(SIGNATURE)] != SIGNATURE or extension != 0:
                raise ValueError(f"not a COPY BINARY stream: it begins with {bytes(view[:HEADER_BYTES])!r}")
            self._past_header = True
            place = HEADER_BYTES
        while (end := self._row(view, place)) is not None:
            place = end
        return place

    def _row(self, view: memoryview, place: int) -> int | None:
        """Hand on the row that begins at `place`; returns where it ends, None where it is not all there."""
        if len(view) < place + 2:
            return None
        (count,) = _INT16.unpack_from(view, place)
        place += 2
        if count == -1:  # the trailer
            return place
        fields: list[memoryview | None] = []
        for _ in range(count):
            if len(view) < place + 4:
                return None
            (size,) = _INT32.unpack_from(view, place)
            place += 4
            if size == -1:
                fields.append(None)
                continue
            if len(view) < place + size:
                return None
            fields.append(view[place : place + size])
            place += size
        self._take(fields)
        for field in fields:
            if field is not None:
                field.release()
        return place
