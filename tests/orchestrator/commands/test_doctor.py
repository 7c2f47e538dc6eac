"""`orchestrator doctor`: a table for each stage, whether it fits, and what to do where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import cli

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
WHOLE = 1000 * 64 + 2 * LAYER + 64


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    file = tmp_path / "cycle.toml"
    file.write_text(
        'name = "weekly"\n[initial_policy]\npath = "model"\n[preference_model]\nmax_tokens = 64\n'
        "[ppo]\nmax_reply_tokens = 16\nprompts_per_iteration = 8\n[evaluation]\nmax_reply_tokens = 16\n"
    )
    return file


def test_every_stage_that_holds_much_has_a_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--config", str(config), "--json", "--host", "1"]) == 0
    tables = {table["job"]: table for table in json.loads(capsys.readouterr().out)}
    assert list(tables) == ["train_preference_model", "train_policy", "evaluate"]
    lines = {line["what"]: line["bytes"] for line in tables["train_policy"]["lines"]}
    assert lines["policy"] == lines["reference"] == 4 * WHOLE
    assert lines["optimiser"] == 8 * WHOLE
    # 62 tokens are what a preference model that heard 64 leaves for a prompt with its reply.
    assert lines["sampler's cache, 8 replies of 62 tokens"] == 8 * 62 * 2 * 2 * 32 * 4
    for table in tables.values():
        [memory] = table["memory"]
        assert memory["of"] == "memory"
        assert memory["needed_bytes"] == sum(line["bytes"] for line in table["lines"]) < memory["free_bytes"] == 1 << 30
        assert table["fits"]


def test_what_does_not_fit_is_status_1_and_says_what_to_do(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked about a GPU that is not here: what lies on it and what in the host's memory are told apart."""
    asked = [
        "--card",
        "0.001",
        "--host",
        "2",
        "--set",
        "ppo.prompts_per_iteration=1",
        "--set",
        "ppo.minibatch_replies=1",
    ]
    assert cli.main(["doctor", "--config", str(config), *asked]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2.0 GiB of memory free, 1 MiB of GPU memory free"
    at = lines.index("train_policy")
    table = lines[at : lines.index("", at)]
    assert any(line.startswith("  last good weights") and line.endswith("host") for line in table)
    assert any("together, of GPU memory" in line and line.endswith("does not fit into 1 MiB") for line in table)
    assert any("together, of the host's memory" in line and line.endswith("fits") for line in table)
    assert any(line.startswith("  sampler's cache, 1 reply of 62 tokens ") for line in table)
    assert table[-1].startswith("  Lower prompts_per_iteration, forward_tokens")


def test_a_model_whose_shape_is_not_here_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "model" / "config.json").unlink()
    assert cli.main(["doctor", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: The shape of {config.parent / 'model'} is not known here (")
    assert said.endswith("Give a folder with a config.json by --model.\n")
    assert said.count("\n") == 1
    assert cli.main(["doctor", "--config", str(config.parent / "none.toml")]) == 2
    assert "No configuration file at" in capsys.readouterr().err


def test_a_model_that_is_pretrained_here_has_the_shape_of_its_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cycle.toml"
    file.write_text('name = "small"\n[initial_policy.pretrain]\nfiles = ["texts.jsonl"]\nvocab_size = 500\n')
    assert cli.main(["doctor", "--config", str(file), "--json"]) == 0
    [table, *_] = json.loads(capsys.readouterr().out)
    weights = next(line["bytes"] for line in table["lines"] if line["what"] == "weights")
    # Four layers of 128: attention 4·128², MLP 3·128·256, norms; tied or not, the trunk has one table.
    assert weights == 4 * (500 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 256 + 2 * 128) + 128)
