"""The configuration file: what a person mistypes is named, with what was expected."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from orchestrator.config import load_config, parse_config
from orchestrator.errors import ConfigError
from orchestrator.settings import normalised_database_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cycle.toml"
    path.write_text('name = "week"\n[initial_policy]\npath = "some/model"\n[ppo]\nkl_coef = 0.1\n')
    return path


def test_overrides_are_typed_like_the_file(file):
    config = load_config(file, ["ppo.learning_rate=0", "name=other", "comparisons.sources=['hh']"])
    assert (config.ppo.learning_rate, config.name, config.comparisons.sources) == (0, "other", ["hh"])
    assert config.ppo.kl_coef == 0.1


def test_unknown_key_names_the_known_ones(file):
    with pytest.raises(ConfigError, match=r"ppo\.kl_coeff: unknown key; did you mean kl_coef\? known are .*kl_coef"):
        load_config(file, ["ppo.kl_coeff=1"])


def test_unknown_section_is_an_error(file):
    with pytest.raises(ConfigError, match=r"pp: unknown key; did you mean ppo\? known are .*ppo"):
        load_config(file, ["pp.kl_coef=1"])


def test_wrong_type_tells_what_was_found(file):
    with pytest.raises(ConfigError, match=r"ppo\.epochs: .*integer.*found 'many'"):
        load_config(file, ["ppo.epochs=many"])


@pytest.mark.parametrize(
    "override", ["ppo.iterations='40'", "ppo.whiten_advantages='yes'", "ppo.learning_rate=true", "seed='7'", "seed=7.0"]
)
def test_values_are_not_taken_for_others(file, override):
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"{key}: .*found "):
        load_config(file, [override])


def test_a_whole_number_is_welcome_where_a_fraction_is_and_arrays_are_tuples(file):
    config = load_config(file, ["ppo.learning_rate=1", "evaluation.best_of=4", "evaluation.best_of_points=[1, 4]"])
    assert config.ppo.learning_rate == 1.0
    assert config.evaluation.best_of_points == (1, 4)


def test_a_folder_in_place_of_a_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\); expected a TOML file"):
        load_config(tmp_path)


def test_override_without_value_tells_the_form(file):
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        load_config(file, ["ppo"])


def test_neither_path_nor_pretrain_is_an_error(file):
    file.write_text("[initial_policy]\n")
    with pytest.raises(ConfigError, match=r"give either initial_policy\.path or"):
        load_config(file)


def test_paths_are_taken_from_the_files_folder_and_variables_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTS", str(tmp_path / "texts"))
    (tmp_path / "model").mkdir()
    file = tmp_path / "cycle.toml"
    file.write_text('[initial_policy]\npath = "model"\n[prompts]\nheld_out_file = "$TEXTS/p.jsonl"\n')
    config = load_config(file)
    assert config.initial_policy.path == str(tmp_path / "model")
    assert config.prompts.held_out_file == str(tmp_path / "texts" / "p.jsonl")


def test_unset_variable_is_named(file, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=r"prompts\.held_out_file: .*\$NOWHERE"):
        load_config(file, ["prompts.held_out_file='$NOWHERE/p.jsonl'"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ppo.kl_placement=loss"], "ppo: kl_estimator k1 in the loss holds nothing"),
        (["ppo.kl_target_nats=5", "ppo.kl_coef=0"], "kl_target_nats needs a kl_coef above 0"),
        (["ppo.iterations=3", "ppo.critic_warmup_iterations=3"], "critic_warmup_iterations is 3 of 3 iterations"),
    ],
)
def test_ppo_settings_that_could_not_learn_are_refused_before_anything_runs(file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(file, overrides)


def test_stored_configuration_reads_back_equal(file):
    config = load_config(file)
    assert parse_config(config.model_dump(mode="json")) == config


def test_missing_file_and_broken_toml_end_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No configuration file at"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[ppo\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_config(tmp_path / "broken.toml")


def test_only_postgres_urls_are_taken():
    assert normalised_database_url("postgres://u@h/d") == "postgresql+psycopg2://u@h/d"
    with pytest.raises(ConfigError, match="begins with 'mysql'"):
        normalised_database_url("mysql://u@h/d")


def test_every_setting_of_a_section_has_the_name_and_default_of_its_job():
    from orchestrator.config import EvaluationSection, PPOSection, PreferenceModelSection, PretrainSection, Section

    names = {
        "pretrain": (PretrainSection, "PretrainSettings"),
        "train_preference_model": (PreferenceModelSection, "PreferenceModelSettings"),
        "train_policy": (PPOSection, "PPOSettings"),
        "evaluate": (EvaluationSection, "EvaluationSettings"),
    }
    for job, (section, settings) in names.items():
        module = importlib.import_module(f"models.jobs.{job}")
        fields = dataclasses.fields(getattr(module, settings))
        # Only nested sections have a factory.
        missing = dataclasses.MISSING
        defaults = {f.name: f.default if f.default_factory is missing else f.default_factory() for f in fields}
        ours = {key: section.model_fields[key].default for key in section.model_fields if key in defaults}
        # The stage makes these into the number of prompts, where it measures the yardstick.
        only_ours = {"files", "threads", "best_of_prompts", "skills"}
        assert set(section.model_fields) - only_ours == set(ours), job
        # Of n replies the configuration means the yardstick, the job its own run.
        ours.pop("best_of", None)
        nested = {key: default.model_dump() for key, default in ours.items() if isinstance(default, Section)}
        assert {key: dataclasses.asdict(defaults.pop(key)) for key in nested} == nested, job
        ours = {key: default for key, default in ours.items() if key not in nested}
        assert {key: default for key, default in ours.items() if defaults[key] != default} == {}, job
