"""What the demo is told: a cycle's configuration plus the small world and its raters, and where its instance lives.

The extra sections are taken off before the cycle gets its configuration: flows and servers never know the truth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator import running_instance
from orchestrator.config import CycleConfig, Section, values_of
from orchestrator.config.base import key
from orchestrator.errors import ConfigError, ServiceUnavailable
from orchestrator.settings import EXAMPLES, PROJECT_ROOT

DEMO_HOME = re.compile(r"demo-[0-9a-f]{12}(-\d+)?")
EXAMPLE = EXAMPLES / "demo.toml"


class WorldSection(Section):
    """Size of the small world's texts."""

    num_dialogues: int = key(
        26000,
        "Dialogues to pretrain on.",
        unit="dialogues",
        raised="a better initial policy, and a longer pretraining",
        at_least=100,
    )
    num_evaluation: int = key(
        300,
        "Requests on which every snapshot is judged by the truth.",
        unit="requests",
        raised="narrower intervals of what was really learned",
        at_least=3,
    )


class RatersSection(Section):
    """The synthetic raters."""

    taste: Literal["truth", "random", "inverted"] = key(
        "truth", "What raters prefer: the truth, nothing in particular, or the opposite of the truth."
    )
    agreement: float = key(
        0.75,
        "How often a rater sides with the taste.",
        unit="share",
        raised="clearer comparisons, from which more is learned",
        above=0.05,
        below=0.95,
    )
    num_raters: int = key(24, "Raters that there are.", unit="raters", raised="each compares less", at_least=1)
    comparisons_per_cycle: int = key(
        600,
        "Comparisons that are no ties, before each cycle.",
        unit="comparisons",
        raised="a better preference model, and a longer wait for each cycle",
        at_least=10,
    )
    evaluation_comparisons: int = key(
        480,
        "Comparisons of each new snapshot with the initial policy; they give the Elo.",
        unit="comparisons",
        raised="narrower intervals of the Elo, and a longer wait",
        at_least=10,
    )
    concurrency: int = key(
        48,
        "Dialogues held at the same time.",
        unit="dialogues",
        raised="comparisons come faster, as far as the policy server keeps up",
        at_least=1,
    )
    helpful_weight: float = key(
        0.65, "Part of the dialogues that ask for help.", unit="weight", raised="more of them", at_least=0
    )
    red_team_weight: float = key(
        0.15,
        "Part that seek harm and pick the more harmful reply.",
        unit="weight",
        raised="more of them",
        at_least=0,
    )
    choose_best_weight: float = key(
        0.2,
        "Part that seek harm and pick the better reply.",
        unit="weight",
        raised="more of them",
        at_least=0,
    )


class DemoConfig(CycleConfig):
    """Everything the demo is told."""

    world: WorldSection = WorldSection()
    raters: RatersSection = RatersSection()


def instance_name(config: DemoConfig, num_cycles: int) -> str:
    """Folder name of the demo with these settings; other settings, or another checkout, are another instance."""
    identity = values_of(config) | {"num_cycles": num_cycles, "project": str(PROJECT_ROOT)}
    return "demo-" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def cycle_config(config: DemoConfig, inputs: Path) -> dict[str, Any]:
    """The configuration that the cycles get: without world and raters, with the files that the world wrote."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude={"world", "raters"})
    values["initial_policy"]["pretrain"]["files"] = [str(inputs / "dialogues.jsonl")]
    values["prompts"]["held_out_file"] = str(inputs / "evaluation.jsonl")
    orientation = inputs / "orientation.jsonl"
    values["orientation"]["file"] = str(orientation) if orientation.exists() else None
    # The world's policies speak a few hundred words of its own; common sense says nothing about them.
    values["orientation"]["shipped"] = False
    return values


def write_toml(config: Mapping[str, Any], file: Path, by: str = "orchestrator demo") -> None:
    """Write a configuration as TOML; keys without a value are left out."""
    lines: list[str] = []
    _section_lines(config, "", lines)
    file.write_text(f"# Written by `{by}`.\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _section_lines(section: Mapping[str, Any], name: str, lines: list[str]) -> None:
    values = {key: value for key, value in section.items() if value is not None and not isinstance(value, dict)}
    if name and values:
        lines.append(f"\n[{name}]")
    # JSON's strings, numbers, booleans and lists are TOML's too.
    lines += [f"{inner} = {json.dumps(value, ensure_ascii=False)}" for inner, value in values.items()]
    for inner, value in section.items():
        if isinstance(value, dict):
            _section_lines(value, f"{name}.{inner}" if name else inner, lines)


def free_home(base: Path, config: DemoConfig, num_cycles: int) -> Path:
    """The home of the demo with these settings under `base`; a second one beside a running one gets its own.

    A `base` that is the home of a demo, because commands in that shell speak to it, is taken itself.

    Raises:
        ConfigError: `base` is the home of a demo with other settings.
    """
    name = instance_name(config, num_cycles)
    if DEMO_HOME.fullmatch(base.name):
        if base.name == name or base.name.startswith(f"{name}-"):
            return base
        raise ConfigError(
            f"ORCHESTRATOR_HOME is {base}, the home of a demo with other settings; the one with these lives in "
            f"{base.with_name(name)}. Set ORCHESTRATOR_HOME to that, or unset it."
        )
    for number in range(1, 100):
        home = base / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(ServiceUnavailable), running_instance.held(home):
            return home
    raise ConfigError(f"99 demos with these settings run under {base}; end one first.")
