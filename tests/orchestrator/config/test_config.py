"""The configuration file: what a person mistypes is named, with what was expected."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from models.detectors.settings import OodSettings
from models.initial_policy.settings import DistillationSetSettings, DistillSettings, PretrainSettings
from models.policy.settings import EvaluationSettings, JudgedReplies, PPOSettings, WritingSettings
from models.preference.settings import PreferenceModelSettings
from orchestrator.config import (
    CycleConfig,
    DistillSection,
    EvaluationSection,
    OodSection,
    PPOSection,
    PreferenceModelSection,
    PretrainSection,
    PromptsSection,
    load_config,
    parse_config,
    told,
    values_of,
)
from orchestrator.config.base import keys_of, section_in, statement_of
from orchestrator.config.by_model import GAE_LAMBDA, REPLIES, REPLY_TOKENS, WARMUP_STEPS
from orchestrator.errors import ConfigError
from orchestrator.settings import normalised_database_url
from tests.paths import EXAMPLES


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
    with pytest.raises(ConfigError, match=r"ppo\.epochs: found 'many'; expected a whole number"):
        load_config(file, ["ppo.epochs=many"])


@pytest.mark.parametrize(
    "override", ["ppo.iterations='40'", "ppo.whiten_advantages='yes'", "ppo.learning_rate=true", "seed='7'", "seed=7.0"]
)
def test_values_are_not_taken_for_others(file, override):
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"{key}: found .*; expected "):
        load_config(file, [override])


def test_a_whole_number_is_welcome_where_a_fraction_is_and_arrays_are_tuples(file):
    config = load_config(file, ["ppo.learning_rate=1", "evaluation.best_of=4", "evaluation.best_of_points=[1, 4]"])
    assert config.ppo.learning_rate == 1.0
    assert config.evaluation.best_of_points == (1, 4)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ppo=3", "ppo: found 3; expected a section with keys of its own"),
        ("ppo.watch=[]", "ppo.watch: found []; expected a section with keys of its own"),
        ("ood=true", "ood: found true; expected a section with keys of its own"),
        ("pmp.files='x'", "pmp.files: found 'x'; expected a list in square brackets"),
        ("pmp.files=['a', 3]", "pmp.files, entry 2: found 3; expected a text in quotes"),
        ("comparisons.label_kinds=['x']", "comparisons.label_kinds, entry 1: found 'x'; expected 'human' or 'model'"),
        (
            "preference_model.skills={name='a'}",
            "preference_model.skills: found a section with name; expected sections that each begin with "
            "[[preference_model.skills]], in double brackets",
        ),
        (
            "preference_model.skills=[{name='a'}]",
            "preference_model.skills, entry 1, file: not given, and has no default",
        ),
        (
            "preference_model.skills=[{name='a', file='b', questio='c'}]",
            "preference_model.skills, entry 1, questio: unknown key; did you mean question?",
        ),
        (
            "evaluation.best_of_points=[1, 'x']",
            "evaluation.best_of_points, entry 2: found 'x'; expected a whole number",
        ),
        ("ppo.kl_coef=-1", "ppo.kl_coef: found -1; expected at least 0"),
        ("ppo.discount=2", "ppo.discount: found 2; expected at most 1"),
        ("ppo.learning_rate=inf", "ppo.learning_rate: found inf; expected a finite number"),
        ("ppo.learning_rate=nan", "ppo.learning_rate: found nan; expected a finite number"),
        ("name=''", "name: found ''; expected a text of at least 1 characters"),
        ("ppo.whiten_advantages=1", "ppo.whiten_advantages: found 1; expected true or false"),
    ],
)
def test_a_wrong_value_is_told_in_the_words_of_the_file(file, override, told):
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    assert str(refused.value).startswith(f"In {file}: {told}")


def test_everything_that_is_wrong_is_told_at_once_and_long_values_are_cut(file):
    with pytest.raises(ConfigError) as refused:
        load_config(file, ["ppo.epochs='" + 90 * "x" + "'", "gates.max_kl_nats=0"])
    shown = "'" + 79 * "x" + "…"
    assert str(refused.value) == (
        f"In {file}: ppo.epochs: found {shown}; expected a whole number; "
        "gates.max_kl_nats: found 0; expected more than 0."
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        # What the jobs refuse, and a cycle would only find out when it comes to them.
        (["preference_model.soft_targets=[0.6, 0.7]"], "soft_targets: found [0.6, 0.7]; expected four probabilities"),
        (["preference_model.soft_targets=[0.6, 0.8, 0.7, 0.9]"], "expected four probabilities from 0.5 to 1, .*rising"),
        (["preference_model.soft_targets=[0.4, 0.6, 0.7, 0.8]"], "expected four probabilities from 0.5 to 1"),
        (["preference_model.soft_targets=[0.6, 0.7, 0.8, 1.1]"], "expected four probabilities from 0.5 to 1"),
        (["ppo.watch.max_length_factor=1"], "ppo.watch.max_length_factor: found 1; expected a factor above 1, or 0"),
        (["ood.detector=exposure"], "ood: detector 'exposure' learns from examples; give examples_file"),
        (["initial_policy.distill.files=['a.txt']"], "initial_policy: distill.reference_learning_rate is not given"),
    ],
)
def test_what_a_job_would_refuse_is_refused_at_once(file, overrides, told):
    with pytest.raises(ConfigError, match=re.escape(told).replace(r"\.\*", ".*")):
        load_config(file, overrides)


def test_the_width_is_a_multiple_of_twice_the_heads(tmp_path):
    (tmp_path / "c.toml").write_text("[initial_policy.pretrain]\nfiles = ['a']\nhidden_size = 36\nnum_heads = 6\n")
    assert load_config(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="hidden_size is 36 with num_heads 4; expected a multiple of 8"):
        load_config(tmp_path / "c.toml", ["initial_policy.pretrain.num_heads=4"])


@pytest.mark.parametrize("cron", ["0 6 * * 1", "*/15 8-18 * * MON-FRI", "0 0 L * *", "0 0 29 2 *", "30 5 1,15 * *"])
def test_a_schedule_that_is_taken_is_taken_by_prefect(file, cron):
    from prefect.client.schemas.schedules import CronSchedule

    assert CronSchedule(cron=load_config(file, [f"schedule.cron='{cron}'"]).schedule.cron, timezone="UTC").cron == cron


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("cron", "weekly", "five fields (minute, hour, day, month, weekday), such as 0 6 * * 1"),
        ("cron", "0 6 * *", "it has another number of fields"),
        ("cron", "0 0 6 * * 1", "it has another number of fields"),
        ("cron", "0 25 * * 1", "bad hour"),
        ("cron", "0 6 31 2 *", "bad day-of-month"),
        (
            "timezone",
            "Europe/Berln",
            "expected an IANA time zone, such as UTC or Europe/Berlin; did you mean Europe/Berlin",
        ),
        ("timezone", "../UTC", "expected an IANA time zone"),
        ("timezone", "Europe", "expected an IANA time zone"),
        ("timezone", "", "expected an IANA time zone"),
    ],
)
def test_a_schedule_that_can_t_be_is_refused_when_the_file_is_read(file, key, value, told):
    with pytest.raises(ConfigError) as refused:
        load_config(file, [f"schedule.{key}='{value}'"])
    assert f"schedule.{key}: found '{value}'; " in str(refused.value)
    assert told in str(refused.value)


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
        (
            ["ppo.kl_target_nats=5", "ppo.kl_coef=0"],
            "ppo: kl_coef is 0 with kl_target_nats given; expected a start above 0",
        ),
        (["ppo.lora_layers=['q_proj']"], "ppo: lora_layers is .'q_proj'. with lora_rank 0; give a lora_rank"),
        (["preference_model.lora_layers=['q_proj']"], "preference_model: lora_layers is .'q_proj'. with lora_rank 0"),
        (["ppo.iterations=3", "ppo.critic_warmup_iterations=3"], "critic_warmup_iterations is 3 of 3 iterations"),
    ],
)
def test_ppo_settings_that_could_not_learn_are_refused_before_anything_runs(file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(file, overrides)


def test_stored_configuration_reads_back_equal(file):
    config = load_config(file, ["ppo.lora_rank=8", "ppo.lora_layers=['q_proj']", "preference_model.lora_rank=4"])
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_demo_s_file_is_told_from_a_cycle_s():
    with pytest.raises(
        ConfigError, match=r"is for `orchestrator demo --config`: it has \[world\] and \[raters\]"
    ) as said:
        load_config(EXAMPLES / "demo.toml")
    assert f"Begin with a copy of {EXAMPLES}/local.toml" in str(said.value)


def test_missing_file_and_broken_toml_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_config(Path("examples/local.toml"))
    # Where it looked, and where the example is: the two may have the same name.
    assert str(refused.value) == (
        f"No configuration file at {tmp_path}/examples/local.toml. Begin with a copy of {EXAMPLES}/local.toml."
    )
    (tmp_path / "broken.toml").write_text("[ppo\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_config(tmp_path / "broken.toml")


def test_only_postgres_urls_are_taken():
    assert normalised_database_url("postgres://u@h/d") == "postgresql+psycopg2://u@h/d"
    with pytest.raises(ConfigError, match="begins with 'mysql'"):
        normalised_database_url("mysql://u@h/d")


# By the job, its settings and the sections that say them; what the stage itself adds stands beside them.
JOBS = {
    "pretrain": (PretrainSettings, [PretrainSection], set()),
    "make_distillation_set": (DistillationSetSettings, [DistillSection], set()),
    "distill_student": (DistillSettings, [DistillSection], set()),
    "train_preference_model": (PreferenceModelSettings, [PreferenceModelSection], {"part"}),
    "train_policy": (PPOSettings, [PPOSection, PromptsSection], set()),
    "evaluate": (EvaluationSettings, [EvaluationSection], {"split"}),
    "fit_ood_detector": (OodSettings, [OodSection], set()),
}


@pytest.mark.parametrize("job", sorted(JOBS))
def test_a_key_reaches_every_setting_of_a_job(job):
    settings, sections, added = JOBS[job]
    keys = {name for section in sections for name in keys_of(section)}
    assert {field.name for field in dataclasses.fields(settings)} - keys == added


def test_a_key_reaches_every_setting_of_writing_under_another_name():
    section = PromptsSection(
        written=1,
        written_examples=2,
        written_max_tokens=4,
        written_min_characters=5,
        written_temperature=6.0,
        written_max_attempts=7,
    )
    assert dataclasses.astuple(section.writing) == (1, 2, 4, 5, 6.0, 7)


def test_a_key_that_came_later_is_told_only_where_it_is_set(file):
    before = {"name": "week", "initial_policy": {"path": "some/model"}, "ppo": {"kl_coef": 0.1}}
    assert "checkpoint_every" not in told(parse_config(before).ppo, PPOSettings)
    assert "checkpoint_every" not in values_of(parse_config(before))["ppo"]
    after = load_config(file, ["ppo.checkpoint_every=7", "prompts.written_max_attempts=9", "prompts.written=1"])
    assert told(after.ppo, PPOSettings)["checkpoint_every"] == 7
    assert told(after.prompts.writing, WritingSettings) == {
        "num_written": 1, "num_examples": 10, "max_prompt_tokens": 64, "max_attempts": 9,
    }  # fmt: skip


RECOVERY = ("max_recoveries", "recovery_rate")


def test_a_job_is_told_its_settings_its_threads_and_nothing_else(file):
    config = load_config(file, ["ppo.threads=3", "evaluation.best_of=4", "ppo.learning_rate=2e-6"])
    # What a published model has by default stands in the configuration as if a person had given it.
    settings = PPOSettings(
        kl_coef=0.1,
        learning_rate=2e-6,
        gae_lambda=GAE_LAMBDA,
        warmup_steps=WARMUP_STEPS,
        prompts_per_iteration=REPLIES,
        max_reply_tokens=REPLY_TOKENS,
    )
    expected = json.loads(json.dumps(dataclasses.asdict(settings))) | {"threads": 3}
    # Newer keys: what was trained before they came is found again.
    for section, newer in (
        (expected, "checkpoint_every"),
        (expected, "checkpoint_time_share"),
        (expected, "cut_off_penalty"),
        (expected, "advantage"),
        (expected, "samples_per_prompt"),
        (expected, "max_prompt_tokens"),
        (expected, "forward_tokens"),
        (expected, "frozen_precision"),
        (expected, "logits_tokens"),
        (expected, "recompute_activations"),
        *((expected["watch"], key) for key in RECOVERY),
    ):
        del section[newer]
    assert told(config.ppo, PPOSettings) | told(config.prompts, PPOSettings) == expected
    assert told(config.evaluation, JudgedReplies) == {
        "num_prompts": 256, "max_reply_tokens": REPLY_TOKENS, "temperature": 1.0, "threads": 1,
    }  # fmt: skip


@pytest.mark.parametrize("section", ["ppo", "evaluation"])
def test_replies_that_the_preference_model_could_not_hear_are_refused_before_it_is_trained(file, section):
    lengths = ["preference_model.max_tokens=100", "ppo.max_reply_tokens=50", "evaluation.max_reply_tokens=50"]
    assert load_config(file, [*lengths, f"{section}.max_reply_tokens=97"]).preference_model.max_tokens == 100
    # The ends of the turn and of the context are two, and a prompt has one at least.
    said = rf"{section}\.max_reply_tokens is 98, but the preference model is trained on texts of up to 100 tokens"
    with pytest.raises(ConfigError, match=said):
        load_config(file, [*lengths, f"{section}.max_reply_tokens=98"])


def all_sections() -> dict[str, Any]:
    """Every section's class by its name in the file."""
    found = {"": CycleConfig}
    for name, known in keys_of(CycleConfig).items():
        if section := section_in(known.annotation):
            found[name] = section
            inner = {key: section_in(field.annotation) for key, field in keys_of(section).items()}
            found |= {f"{name}.{key}": each for key, each in inner.items() if each}
    return found


def test_every_number_says_its_unit_and_what_raising_it_does():
    """And every key what it means: docs/reference/configuration.md is made from it."""
    numbers, silent = 0, []
    for name, section in all_sections().items():
        for key, known in keys_of(section).items():
            if section_in(known.annotation) is not None:
                continue
            is_number = {int, float} & {known.annotation, *typing.get_args(known.annotation)}
            statement = statement_of(known)
            numbers += bool(is_number)
            stated = known.description and (not is_number or (statement["unit"] and statement["raised"]))
            silent += [] if stated else [f"{name}.{key}"]
    assert silent == []
    assert numbers > 80


def with_approval(schedule: dict[str, Any], **approval: Any) -> CycleConfig:
    return parse_config({"initial_policy": {"path": "x"}, "schedule": schedule, "approval": approval})


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [
        ({"cron": "0 6 * * 1"}, 168),
        ({"cron": "0 6 * * 1,4"}, 72),  # Monday to Thursday; Thursday to Monday are 96
        ({"cron": "0 6 * * *"}, 24),
        # The day on which summer time begins has 23 hours.
        ({"cron": "0 6 * * *", "timezone": "Europe/Berlin"}, 23),
    ],
)
def test_approval_ends_before_the_next_cycle_begins(schedule, hours):
    assert with_approval(schedule, required=True, timeout_hours=hours - 0.5).approval_timeout().total_seconds() == (
        (hours - 0.5) * 3600
    )
    with pytest.raises(ConfigError) as refused:
        with_approval(schedule, required=True, timeout_hours=hours)
    assert f"approval.timeout_hours: found {hours}; expected less than the {hours} hours between two" in str(
        refused.value
    )
    # Where only gates ask, the default of two days is no reason to refuse a daily schedule.
    asked_by_gates = with_approval(schedule).approval_timeout()
    assert asked_by_gates.total_seconds() == (48 if hours > 48 else hours / 2) * 3600


def test_a_configuration_from_before_approval_is_the_same_cycle():
    assert "approval" not in values_of(with_approval({}))
    assert values_of(with_approval({}, required=True))["approval"] == {"required": True, "timeout_hours": 48.0}
