"""Event files for TensorBoard: byte for byte where it is short, and read back as a reader does."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.reports.tensorboard import FILE, crc32c, event_file, export_runs


def test_the_checksum_is_that_of_the_standard() -> None:
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([0xFF] * 32)) == 0x62A8AB43


def records(data: bytes) -> list[bytes]:
    """The messages of a file of TFRecords, every checksum looked at."""

    def masked(part: bytes) -> int:
        crc = crc32c(part)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32

    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        message, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == masked(message)
        found.append(message)
        data = data[4:]
    return found


def test_a_line_becomes_the_event_that_the_protocol_says() -> None:
    line = {"step": 300, "kl": 0.5, "n": 2, "stopped": True, "reason": "none", "nothing": None}
    version, event = records(event_file([line], 1.0))
    time = b"\x09" + struct.pack("<d", 1.0)  # field 1, a double
    assert version == time + b"\x1a\x0dbrain.Event:2"  # field 3, 13 bytes
    # 300 is 0b10_0101100: 0xAC 0x02 as a varint. Values: field 1 of the summary, each a tag and a float.
    kl = b"\x0a\x02kl" + b"\x15" + struct.pack("<f", 0.5)
    n = b"\x0a\x01n" + b"\x15" + struct.pack("<f", 2.0)
    summary = b"\x0a\x09" + kl + b"\x0a\x08" + n
    assert event == time + b"\x10\xac\x02" + b"\x2a\x15" + summary
    assert len(summary) == 0x15


def test_every_run_of_the_machine_is_exported_and_a_later_export_takes_its_place(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "events"
    assert cli.main(["metrics", "export", "--tensorboard", str(out)]) == 2
    assert "No job has written metrics below" in capsys.readouterr().err
    run = home / "work" / ("ab" * 32)
    run.mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps({"job": "train_policy"}))
    # The last line is half written: the job is at it.
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "k')
    assert cli.main(["metrics", "export", "--tensorboard", str(out)]) == 0
    assert capsys.readouterr().out == f"train_policy-abababababab: 1 steps\ntensorboard --logdir {out}\n"
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "kl": 1}\n')
    assert export_runs(home / "work", out) == [("train_policy-abababababab", 2)]
    assert [file.name for file in (out / "train_policy-abababababab").iterdir()] == [FILE]
    assert len(records((out / "train_policy-abababababab" / FILE).read_bytes())) == 3
