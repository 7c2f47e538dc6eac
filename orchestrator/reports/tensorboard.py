"""The metrics of jobs as TensorBoard's event files, written without TensorBoard.

An event file is a sequence of TFRecords: length, checksum of the length, message, checksum of the message. The message
is a protocol buffer `Event` (wall_time = 1, step = 2, file_version = 3, summary = 5) whose summary holds values
(tag = 1, simple_value = 2). `metrics.jsonl` stays the record; what is written here can be written again.

Source: event.proto and summary.proto of TensorFlow, and its tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.reports.ppo_progress import read_lines

FILE = "events.out.tfevents.0.metrics"
"""TensorBoard knows event files by `tfevents` in their name; with one fixed name a later export takes the place."""
_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


def export_runs(work: Path, out: Path) -> list[tuple[str, int]]:
    """Write the metrics of every job below `work` into a folder of its own below `out`; names and numbers of lines.

    A run is called after its job and the beginning of its fingerprint, e.g. `train_policy-2f7c61ab90d4`.
    """
    written = []
    for file in sorted(work.glob("*/metrics.jsonl")):
        lines = read_lines(file.parent)
        if not lines:
            continue
        spec = json.loads((file.parent / "spec.json").read_text(encoding="utf-8"))
        name = f"{spec['job']}-{file.parent.name[:12]}"
        (out / name).mkdir(parents=True, exist_ok=True)
        # Times are no part of the metrics, so that two runs of the same job write the same: all lines carry the last.
        events = event_file(lines, file.stat().st_mtime)
        aside = out / name / "new"
        aside.write_bytes(events)
        aside.replace(out / name / FILE)
        written.append((name, len(lines)))
    return written


def event_file(lines: list[dict[str, Any]], wall_time_s: float) -> bytes:
    """An event file of the numbers in the lines, by their `step`; what is no number is left out."""
    head = _field(1, _DOUBLE, struct.pack("<d", wall_time_s))
    records = [_record(head + _field(3, _BYTES, b"brain.Event:2"))]
    for line in lines:
        values = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FLOAT, struct.pack("<f", value)))
            for tag, value in _numbers(line)
        )
        step = _field(2, _VARINT, _varint(int(line["step"])))
        records.append(_record(head + step + _field(5, _BYTES, values)))
    return b"".join(records)


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for tag, value in line.items():
        if tag != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, float(value)


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    length = _varint(len(content)) if wire_type == _BYTES else b""
    return _varint(number << 3 | wire_type) + length + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), the checksum of TFRecords; of b"123456789" it is 0xE3069283 (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
