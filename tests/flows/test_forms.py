"""What a filled form becomes: the configuration that is chosen, with what was filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cycle import cycle
from flows.forms import config_of, form_of
from orchestrator.config.known import file_of, known, remember
from orchestrator.errors import ConfigError

EMPTY = {"configuration": None, "config": None, "overrides": []}


@pytest.fixture
def weekly(home: Path, tmp_path: Path) -> Path:
    """A configuration beside a file that it names, known to the instance."""
    folder = tmp_path / "of the operator"
    folder.mkdir()
    (folder / "prompts.jsonl").touch()
    file = folder / "weekly.toml"
    file.write_text("[initial_policy]\npath = 'x'\n[prompts]\ntrain_file = 'prompts.jsonl'\n[ppo]\niterations = 7\n")
    assert remember(home, file) == "weekly"
    return file


def test_empty_fields_are_as_the_configuration_has_them(weekly: Path) -> None:
    config = config_of(EMPTY | {"configuration": "weekly", "iterations": None})
    assert config.ppo.iterations == 7
    # Read through a link, a relative path is still taken from the file's own folder.
    assert config.prompts.train_file == str(weekly.parent / "prompts.jsonl")


def test_what_is_filled_in_takes_its_place_and_free_text_is_last(weekly: Path) -> None:
    filled = {
        "configuration": "weekly",
        "iterations": 3,
        "policy_learning_rate": 1e-06,
        "overrides": ["ppo.iterations=2"],
    }
    config = config_of(EMPTY | filled)
    assert (config.ppo.iterations, config.ppo.learning_rate) == (2, 1e-06)


def test_a_file_takes_the_place_of_a_name(weekly: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("name = 'other'\n[initial_policy]\npath = 'x'\n")
    assert config_of(EMPTY | {"configuration": "weekly", "config": str(other)}).name == "other"


def test_what_ties_keys_together_is_refused_before_a_cycle_is_opened(weekly: Path) -> None:
    with pytest.raises(ConfigError, match="critic_warmup_iterations is 4 of 3 iterations"):
        config_of(EMPTY | {"configuration": "weekly", "iterations": 3, "overrides": ["ppo.critic_warmup_iterations=4"]})


def test_without_a_known_configuration_the_error_names_those_there_are(weekly: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"No configuration was chosen; known are weekly\."):
        config_of(EMPTY)
    with pytest.raises(ConfigError, match=r"No configuration 'weakly' in .*known are weekly\. Did you mean weekly\?"):
        file_of(home, "weakly")
    weekly.unlink()
    assert known(home) == {}


def test_a_name_belongs_to_the_file_that_was_registered_last(weekly: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "weekly.toml"
    other.write_text(weekly.read_text())
    assert known(home) == {"weekly": weekly.resolve()}
    remember(home, other)
    assert known(home) == {"weekly": other.resolve()}
    (home / "configs" / "mine.toml").write_text("")
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(ConfigError, match="is another configuration of the same name"):
        remember(home, tmp_path / "mine.toml")


def test_a_field_says_what_the_configurations_on_offer_have(weekly: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[ppo]\niterations = 'many'\n")
    fields = form_of(cycle, {"weekly": weekly, "broken": broken}).properties
    assert fields["configuration"]["enum"] == ["broken", "weekly"]
    assert fields["iterations"]["description"].endswith("40 where it has none). When registered: 7 in weekly.")
    assert fields["min_comparisons"]["description"].endswith(" When registered: 500 in weekly.")
    assert "When registered" not in form_of(cycle, {}).properties["iterations"]["description"]
