"""From a TOML file and overrides to a checked configuration."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from models.policy.settings import CLOSING_IDS
from orchestrator.config.by_model import with_defaults_by_model
from orchestrator.config.cycle import CycleConfig
from orchestrator.config.messages import explain
from orchestrator.errors import ConfigError
from orchestrator.settings import EXAMPLES

C = TypeVar("C")
EXAMPLE = EXAMPLES / "local.toml"
DEMO_SECTIONS = ("world", "raters")
"""What the demo is told beside its cycles' configuration (`orchestrator/world/settings.py`)."""


@overload
def load_config(file: Path, overrides: list[str] | None = None) -> CycleConfig: ...
@overload
def load_config(file: Path, overrides: list[str] | None, model: type[C]) -> C: ...
def load_config(file: Path, overrides: list[str] | None = None, model: type[Any] = CycleConfig) -> Any:
    """Read a TOML file and apply `section.key=value` overrides (values as TOML, bare words as text).

    Raises:
        ConfigError: file missing, not TOML, unknown key, wrong type; the message names file, key and value.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No configuration file at {file.absolute()}. Begin with a copy of {EXAMPLE}.") from None
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}); expected a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    if model is CycleConfig and (sections := [name for name in DEMO_SECTIONS if name in raw]):
        found = " and ".join(f"[{name}]" for name in sections)
        raise ConfigError(
            f"{file} is for `orchestrator demo --config`: it has {found}, which a cycle knows nothing of. "
            f"Begin with a copy of {EXAMPLE}; a demo's cycles run with cycle.toml in its home."
        )
    for override in overrides or []:
        _override(raw, override)
    absolute = _absolute(raw, file.parent.absolute())
    if model is not CycleConfig:
        return parse_config(absolute, str(file), model)
    config = parse_config(with_defaults_by_model(absolute), str(file))
    _check_lengths(config, str(file))
    return config


def _check_lengths(config: CycleConfig, origin: str) -> None:
    """Refuse before a week's training what PPO would refuse after it; a stored configuration is read as it is."""
    heard = config.preference_model.max_tokens
    for name, section in (("ppo", config.ppo), ("evaluation", config.evaluation)):
        if section.max_reply_tokens + CLOSING_IDS >= heard:
            raise ConfigError(
                f"In {origin}: {name}.max_reply_tokens is {section.max_reply_tokens}, but the preference model is "
                f"trained on texts of up to {heard} tokens, prompt included. Lower it, or raise "
                "preference_model.max_tokens."
            )


@overload
def parse_config(raw: dict[str, Any], origin: str = "the configuration") -> CycleConfig: ...
@overload
def parse_config(raw: dict[str, Any], origin: str, model: type[C]) -> C: ...
def parse_config(raw: dict[str, Any], origin: str = "the configuration", model: type[Any] = CycleConfig) -> Any:
    """Validate a mapping, e.g. the one stored on a cycle; errors name key, value and what was expected."""
    try:
        # By way of JSON, which has no types beyond those of TOML: strict there means that "40" is no number and true no
        # 1.0, while tables are still sections and arrays tuples.
        return TypeAdapter(model).validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"In {origin}: {explain(error, model)}.") from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value, e.g. ppo.learning_rate=0.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {part} is a value and has no keys below it.")
    target[parts[-1]] = value


PATH_KEYS = {"path", "file", "train_file", "held_out_file", "examples_file", "prompt_file", "teacher"}


def _absolute(node: Any, base: Path, key: str = "") -> Any:
    """Make the file names in a raw configuration absolute; a model path that is no folder stays a hub name."""
    if isinstance(node, dict):
        return {name: _absolute(value, base, name) for name, value in node.items()}
    if isinstance(node, list) and key in ("files", "check_against"):
        return [_absolute(value, base, "file") for value in node]
    if isinstance(node, list):
        return [_absolute(value, base) if isinstance(value, dict) else value for value in node]
    if isinstance(node, str) and key in PATH_KEYS and node:
        expanded = Path(os.path.expanduser(os.path.expandvars(node)))
        if key in ("path", "teacher") and not (base / expanded).exists():
            return node
        return node if "$" in str(expanded) else str(base / expanded)
    return node
