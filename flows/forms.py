"""Forms of flows that train: a configuration by name, what operators change of it as typed fields, free text last.

Unit, default, meaning and bounds of a field are those of its key, which is stated once; Prefect's server refuses what
lies outside them, so that nothing begins. What ties several keys together is checked before a cycle is opened.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.utilities.callables import ParameterSchema
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from orchestrator.config import CycleConfig, load_config
from orchestrator.config.base import bounds_of, keys_of, section_in, statement_of
from orchestrator.config.known import file_of, known
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

FIELDS = {
    "iterations": "ppo.iterations",
    "kl_coef": "ppo.kl_coef",
    "policy_learning_rate": "ppo.learning_rate",
    "pm_learning_rate": "preference_model.learning_rate",
    "min_comparisons": "cycle.min_comparisons",
    "prompts_per_iteration": "ppo.prompts_per_iteration",
    "stop_at_kl_nats": "ppo.max_kl_nats",
    "evaluation_prompts": "evaluation.num_prompts",
    "min_pm_accuracy": "gates.min_pm_accuracy",
    "min_score_gain": "gates.min_score_gain",
    "min_gain_over_live": "gates.min_gain_over_live",
    "max_kl_nats": "gates.max_kl_nats",
}
"""Key of the configuration behind each field. A flow's form has those of them that are its parameters."""
TITLES = {
    "stage": "Stage",
    "configuration": "Configuration",
    "iterations": "PPO: iterations",
    "kl_coef": "PPO: KL coefficient",
    "policy_learning_rate": "PPO: learning rate of the policy",
    "pm_learning_rate": "Learning rate of the preference model",
    "min_comparisons": "Begin with at least so many fresh comparisons",
    "prompts_per_iteration": "PPO: prompts per iteration",
    "stop_at_kl_nats": "PPO: stop beyond this KL",
    "evaluation_prompts": "Evaluation: prompts at most",
    "min_pm_accuracy": "Gate: least accuracy of the preference model",
    "min_score_gain": "Gate: least gain over the initial policy",
    "min_gain_over_live": "Gate: least gain over the live policy",
    "max_kl_nats": "Gate: most KL to the initial policy",
    "comparisons": "Comparison set",
    "fresh": "Build everything anew",
    "overrides": "Other settings, as text",
    "config": "Another configuration file",
}
ACTS = {"cycle": "Cycle", "decision": "Decision", "reason": "Why", "name": "Your name", "policy": "Policy"}
"""Titles of the fields by which a person acts. The run's own name stands above them, and is another one."""
MOST_NAMED = 5
"""Configurations whose values a field's description names."""
LIMITS = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
"""What Prefect's server can check of a value by itself."""


def config_of(asked: Mapping[str, Any]) -> CycleConfig:
    """The configuration that a filled form asks for, by its fields' names.

    Raises:
        ConfigError: none is chosen or known, or a value of it makes no sense.
    """
    return load_config(_file(asked), [*_changes(asked), *asked["overrides"]])


def _file(asked: Mapping[str, Any]) -> Path:
    if asked["config"] is not None:
        return Path(asked["config"])
    home = Settings.from_env().home
    if asked["configuration"] is None:
        raise ConfigError(
            f"No configuration was chosen; known are {', '.join(known(home)) or 'none'}. "
            "`orchestrator register --config FILE` makes a file known, and the default."
        )
    return file_of(home, asked["configuration"])


def _changes(asked: Mapping[str, Any]) -> Iterable[str]:
    """What was filled in, as overrides; JSON's numbers are TOML's."""
    return [f"{key}={json.dumps(asked[name])}" for name, key in FIELDS.items() if asked.get(name) is not None]


def form_of(flow: Flow[..., Any], offered: Mapping[str, Path]) -> ParameterSchema:
    """The form of a flow's Prefect deployment; `offered` are the files of the configurations to choose from, by name.

    Each field says what those have, as they were when the form was made.
    """
    schema = flow.parameters.model_copy(deep=True)
    configurations = _readable(offered)
    for name, field in schema.properties.items():
        if name in FIELDS:
            field |= _stated(FIELDS[name])
            field["description"] += _given(FIELDS[name], configurations)
        elif name == "configuration" and offered:
            field |= {"enum": sorted(offered)}
        field["title"] = (TITLES | ACTS).get(name, field.get("title", name))
        _may_be_left_empty(field)
    return schema


def _readable(offered: Mapping[str, Path]) -> dict[str, CycleConfig]:
    """The configurations that can be read; what is wrong with another is said by the run that is asked for it."""
    found = {}
    for name, file in sorted(offered.items()):
        with contextlib.suppress(ConfigError):
            found[name] = load_config(file)
    return found


def _given(key: str, configurations: Mapping[str, CycleConfig]) -> str:
    """What the configurations have for a key, in a sentence; "" where there are none."""
    values = {name: functools.reduce(getattr, key.split("."), config) for name, config in configurations.items()}
    said = [f"{'not set' if value is None else f'{value:g}'} in {name}" for name, value in values.items()]
    return f" When registered: {', '.join(said[:MOST_NAMED])}." if said else ""


def _may_be_left_empty(field: dict[str, Any]) -> None:
    """Show one input for a value or nothing; Prefect's form would ask first which of the two it is."""
    choices = [choice for choice in field.pop("anyOf", []) if choice.get("type") != "null"]
    if choices:
        field |= choices[0] | {name: field[name] for name in LIMITS if name in field}
    if field.get("default", "") is None:
        # A null that the form sends would have to be of the field's type; what is left out is None to the flow.
        del field["default"]


def _stated(key: str) -> dict[str, Any]:
    """Limits and description of a key, as it is stated for the configuration."""
    section, _, name = key.rpartition(".")
    stated_in = _section(section)
    schema = TypeAdapter(stated_in).json_schema()["properties"][name]
    choices = [schema, *schema.get("anyOf", [])]
    limits = {name: choice[name] for choice in choices for name in LIMITS if name in choice and choice[name] != "null"}
    return limits | {"description": _described(key, keys_of(stated_in)[name])}


def _section(path: str) -> Any:
    section: Any = CycleConfig
    for part in path.split("."):
        section = section_in(keys_of(section)[part].annotation)
    return section


def _described(key: str, known_key: FieldInfo) -> str:
    """What a person must know to fill it: meaning, unit and limits, what more does, what holds where it is empty."""
    statement = statement_of(known_key)
    default = "not set" if known_key.default is None else f"{known_key.default:g}"
    said = "; ".join(filter(None, (statement["unit"], bounds_of(known_key))))
    unit = f" Unit: {said}." if said else ""
    raised = f" Higher: {statement['raised']}." if statement["raised"] else ""
    return (
        f"{known_key.description}{unit}{raised} Left empty: as the configuration has it (`{key}`; {default} where it "
        "has none)."
    )
