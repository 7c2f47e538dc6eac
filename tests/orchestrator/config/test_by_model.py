"""What a published model is trained with where a configuration says nothing, by its size; what is given holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from orchestrator.config import CycleConfig, EvaluationSection, PPOSection, load_config
from orchestrator.config.by_model import ADAPTERS, UNKNOWN, num_parameters, rates_for
from orchestrator.config.cycle import ServingSection


def write_weights(folder: Path, *shapes: tuple[int, ...]) -> Path:
    """A model's folder whose files say these shapes; the weights themselves, which nobody reads, are left out."""
    folder.mkdir()
    for number, shape in enumerate(shapes):
        header = {
            "__metadata__": {"format": "pt"},
            f"w{number}": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]},
        }
        content = json.dumps(header).encode()
        (folder / f"model-{number}.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    return folder


def rates_of(tmp_path: Path, model: str, text: str = "", *overrides: str) -> tuple[float, float]:
    file = tmp_path / "cycle.toml"
    file.write_text(f'[initial_policy]\npath = "{model}"\n{text}')
    config = load_config(file, list(overrides))
    return config.preference_model.learning_rate, config.ppo.learning_rate


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (19_999, (1e-3, 1e-4)),
        (20_000, (2e-5, 3e-6)),
        (500_000, (2e-5, 3e-6)),
        (500_001, (1e-5, 1e-6)),
        (3_000_000, (1e-5, 1e-6)),
        (8_000_000, (5e-6, 1e-6)),
    ],
)
def test_rates_go_by_the_size_of_the_model(rows: int, expected: tuple[float, float], tmp_path: Path) -> None:
    # Two files, 1,000 columns in all.
    model = write_weights(tmp_path / "model", (rows, 400), (rows, 600))
    assert num_parameters(model) == rows * 1000
    assert rates_of(tmp_path, "model") == expected


def test_what_is_given_holds_and_zero_is_given_too(tmp_path: Path) -> None:
    write_weights(tmp_path / "model", (1_000_000, 1000))
    given = "[preference_model]\nlearning_rate = 3e-4\n[ppo]\nlearning_rate = 0\n"
    assert rates_of(tmp_path, "model", given) == (3e-4, 0)
    assert rates_of(tmp_path, "model", "", "ppo.learning_rate=2e-7") == (1e-5, 2e-7)


def test_adapters_get_larger_steps(tmp_path: Path) -> None:
    write_weights(tmp_path / "model", (1_000_000, 1000))
    found = rates_of(tmp_path, "model", "[ppo]\nlora_rank = 8\n")
    assert found == (1e-5, pytest.approx(ADAPTERS * 1e-6))


def test_pre_training_of_the_preference_model_takes_ten_times_its_rate(tmp_path: Path) -> None:
    write_weights(tmp_path / "model", (1_000_000, 1000))
    (tmp_path / "cycle.toml").write_text('[initial_policy]\npath = "model"\n[pmp]\nfiles = ["answers.jsonl"]\n')
    assert load_config(tmp_path / "cycle.toml").pmp.learning_rate == pytest.approx(1e-4)


def test_a_model_on_the_hub_gets_careful_rates(tmp_path: Path) -> None:
    assert rates_of(tmp_path, "some/model-on-the-hub") == UNKNOWN


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 5) + b"{nope"])
def test_weights_that_cannot_be_read_are_not_counted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert num_parameters(tmp_path) is None
    assert rates_for(None) == UNKNOWN


def config_of(tmp_path: Path, text: str = "", rows: int = 1_000_000) -> CycleConfig:
    """A configuration with a model of 1,000 columns."""
    write_weights(tmp_path / "model", (rows, 1000))
    (tmp_path / "cycle.toml").write_text(f'[initial_policy]\npath = "model"\n{text}')
    return load_config(tmp_path / "cycle.toml")


def test_a_published_model_is_trained_on_long_replies_in_large_rollouts(tmp_path: Path) -> None:
    ppo = config_of(tmp_path).ppo
    assert (ppo.warmup_steps, ppo.gae_lambda, ppo.prompts_per_iteration, ppo.max_reply_tokens) == (20, 1.0, 256, 512)


def test_a_model_as_small_as_one_from_scratch_has_the_defaults_of_the_sections(tmp_path: Path) -> None:
    config = config_of(tmp_path, rows=10_000)
    assert (config.ppo, config.evaluation, config.serving) == (PPOSection(), EvaluationSection(), ServingSection())


def test_what_is_given_of_ppo_holds(tmp_path: Path) -> None:
    given = "warmup_steps = 0\ngae_lambda = 0.95\nprompts_per_iteration = 8\nmax_reply_tokens = 32\n"
    config = config_of(tmp_path, f"[ppo]\n{given}[serving]\nmax_reply_tokens = 64\n")
    ppo = config.ppo
    assert (ppo.warmup_steps, ppo.gae_lambda, ppo.prompts_per_iteration, ppo.max_reply_tokens) == (0, 0.95, 8, 32)
    # Judged as it was trained where nothing else is said.
    assert (config.evaluation.max_reply_tokens, config.serving.max_reply_tokens) == (32, 64)


@pytest.mark.parametrize(("heard", "expected"), [(1024, 512), (512, 256), (4096, 512), (16, 8)])
def test_replies_leave_half_of_what_the_preference_model_hears_to_the_prompt(
    heard: int, expected: int, tmp_path: Path
) -> None:
    config = config_of(tmp_path, f"[preference_model]\nmax_tokens = {heard}\n")
    assert config.ppo.max_reply_tokens == config.evaluation.max_reply_tokens == expected


def test_a_rollout_of_several_replies_to_a_prompt_is_as_large(tmp_path: Path) -> None:
    ppo = config_of(tmp_path, '[ppo]\nadvantage = "rloo"\nsamples_per_prompt = 4\n').ppo
    assert (ppo.prompts_per_iteration, ppo.replies_per_iteration) == (64, 256)


def test_a_stored_configuration_is_read_as_it_is(tmp_path: Path) -> None:
    from orchestrator.config import parse_config

    raw = {"initial_policy": {"path": str(write_weights(tmp_path / "model", (1_000_000, 1000)))}}
    assert parse_config(raw).ppo.learning_rate == 1e-4
