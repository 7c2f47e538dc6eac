"""Text for the initial policy: what is taken from each kind of file, and what a damaged one says; its layers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.data.named_files import write_text
from orchestrator.errors import ConfigError
from orchestrator.stages.named_inputs import linear_layers

DIALOGUE = "\n\nHuman: a\n\nAssistant: b"


def test_every_kind_of_file_gives_its_texts_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "one"}) + "\n\n" + json.dumps({"chosen": DIALOGUE, "rejected": DIALOGUE + "c"}) + "\n"
    )
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two\nlines\n"))
    told = write_text([tmp_path / "a.jsonl", tmp_path / "b.txt.gz", tmp_path / "a.jsonl"], tmp_path)
    assert told == {"num_texts": 4, "num_repeats": 3}
    lines = [json.loads(line) for line in (tmp_path / "dialogues.jsonl").read_text().splitlines()]
    assert lines[0] == {"text": "one"}
    assert [line["messages"][-1]["content"] for line in lines[1:3]] == ["b", "bc"]
    assert lines[3] == {"text": "two\nlines\n"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", b"{}", "is named .gz but is no gzip data: it begins with b'{}'.*The configuration names it"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:20],
            "the gzip data ends too early.*The configuration names it",
        ),
        ("a.jsonl", b"\xff", "byte 0xff is not UTF-8.*The configuration names it"),
        (
            "a.jsonl",
            b"[1]\n",
            r"a.jsonl, line 1: not_object: found int; expected an object; expected messages,",
        ),
        ("a.jsonl", b'{"text": "x"}\ngoal,target', r"a.jsonl, line 2: not_json"),
        ("a.jsonl", b'{"chosen": "x", "rejected": "y"}', r"a.jsonl, line 1: malformed_dialogue: chosen is no dialogue"),
        ("a.txt", b"", "hold no text"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=says):
        write_text([tmp_path / name], tmp_path / "out")


def test_layers_are_read_from_headers_and_a_damaged_file_names_none(tmp_path: Path) -> None:
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (4, 2),
        "model.layers.0.norm.weight": 4,
        "lm_head.weight": (9, 2),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert linear_layers(tmp_path) == {"q_proj"}
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert linear_layers(tmp_path) == set()
