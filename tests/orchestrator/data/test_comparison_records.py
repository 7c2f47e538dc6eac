"""The records of a comparison set are read in the order of its manifest, and only at the ends of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.comparison_records import records


def record(name: str, split: str = "train") -> dict[str, Any]:
    # A reply may hold U+2028, which str.splitlines() takes for the end of a line.
    return {"id": name, "split": split, "better": [{"role": "assistant", "content": "one\u2028two"}]}


@pytest.fixture(params=[(",", ":"), (", ", ": ")], ids=["as Postgres writes", "as json.dumps writes"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shards = {"later.jsonl": [record("1"), record("17", "held_out")], "a.jsonl": [record("171"), record("9")]}
    for name, content in shards.items():
        lines = (json.dumps(one, ensure_ascii=False, separators=request.param) + "\n" for one in content)
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [{"file": name} for name in shards]}))
    return tmp_path


def test_records_come_in_the_order_of_the_manifest(folder: Path) -> None:
    assert list(records(folder)) == [record("1"), record("17", "held_out"), record("171"), record("9")]


def test_records_of_one_split_or_of_some_ids_alone(folder: Path) -> None:
    assert list(records(folder, "held_out")) == [record("17", "held_out")]
    # "1" begins two other ids, and "2" stands nowhere.
    assert [one["id"] for one in records(folder, ids={"171", "1", "2"})] == ["1", "171"]
    assert [one["id"] for one in records(folder, "train", ids={"17", "9"})] == ["9"]
