"""`orchestrator doctor --config FILE`: what each stage of a cycle will hold in memory, and whether that fits here."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from models.memory.needs import Needs
    from models.memory.room import Room
    from orchestrator.config import CycleConfig

GIB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the cycle's configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `cycle run`")
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="the initial policy, where the configuration distills one; a folder or hub name",
    )
    parser.add_argument(
        "--card", type=float, metavar="GIB", help="reckon with a GPU of so much free memory in place of what is here"
    )
    parser.add_argument("--host", type=float, metavar="GIB", help="reckon with so much free memory of the host")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print a table for each stage; 1 where one does not fit."""
    # The tables need torch, which no other command of this kind waits for.
    from models.memory.room import compared
    from orchestrator.config import load_config

    config = load_config(args.config, args.set)
    room = _room(args)
    device = "cpu" if room.card is None else "cuda"
    tables = _tables(config, _shape(args.model, config), device)
    fits = {table.job: all(needed <= free for _, needed, free in compared(table, room)) for table in tables}
    if args.json:
        print(json.dumps([_as_json(table, room, fits[table.job]) for table in tables], indent=2))
    else:
        print(_machine(room))
        for table in tables:
            print("\n".join(["", *_lines(table, room)]))
    return 0 if all(fits.values()) else 1


def _room(args: argparse.Namespace) -> Room:
    """The memory that is free here, or was asked about."""
    import torch

    from models.memory.room import Room

    there = torch.cuda.is_available() and Settings.from_env(find_instance=False).device != "cpu"
    room = Room.of(torch.device("cuda" if there else "cpu"))
    return Room(
        host=room.host if args.host is None else round(args.host * GIB),
        card=room.card if args.card is None else round(args.card * GIB),
    )


def _shape(model: str | None, config: CycleConfig) -> Any:
    """The configuration of the initial policy.

    Raises:
        ConfigError: it can't be had from here.
    """
    from models.initial_policy.pretraining import shape
    from models.memory.needs import config_of

    section = config.initial_policy
    if model is None and section.pretrain is not None:
        return shape(section.pretrain, section.pretrain.vocab_size, 1, 0)
    name = model or section.path
    try:
        return config_of(str(name))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The shape of {name} is not known here ({reason}). Give a folder with a config.json by --model."
        ) from None


def _tables(config: CycleConfig, shape: Any, device: str) -> list[Needs]:
    """What the three stages that hold most need, with texts as long as the configuration lets them be."""
    from models.backbone.adapters import lora_of
    from models.jobs.evaluate import SLOTS
    from models.memory.needs import (
        FLOAT,
        Judge,
        needs_of_evaluation,
        needs_of_policy,
        needs_of_preference_model,
        tables,
    )
    from models.memory.passes import Weights, apart
    from models.policy.settings import EvaluationSettings, PPOSettings
    from models.preference.settings import PreferenceModelSettings
    from models.runtime.settings import settings_from
    from orchestrator.config import told

    def settings(of: Any, *sections: Any) -> Any:
        values = {name: value for section in sections for name, value in told(section, of).items()}
        # Threads are the job's, and none of its settings.
        return settings_from(of, {name: value for name, value in values.items() if name != "threads"})

    ppo = settings(PPOSettings, config.ppo, config.prompts)
    scoring = settings(PreferenceModelSettings, config.preference_model)
    judged = settings(EvaluationSettings, config.evaluation)
    names = ["preference model", *(["watcher"] if scoring.twin != "off" else [])]
    whole = [Judge(name, shape) for name in names]
    lora = lora_of(scoring)
    adapters = None if lora is None or not ppo.lora_rank else FLOAT * apart(Weights.of, shape).adapters(lora)
    held = [Judge(name, shape, adapters) for name in names]
    slots = min(SLOTS, judged.num_prompts * judged.best_of)
    longest, longest_judged = (_longest(each, scoring.max_tokens) for each in (ppo, judged))
    reckon = [
        functools.partial(needs_of_preference_model, shape, scoring, device),
        functools.partial(needs_of_policy, shape, held, ppo, device, longest),
        functools.partial(needs_of_evaluation, shape, shape, whole, judged, device, slots, longest_judged),
    ]
    return apart(tables, reckon)


def _longest(settings: Any, heard: int) -> int:
    """Tokens of the longest prompt with its reply that the settings let through."""
    from models.policy.settings import CLOSING_IDS

    room = heard - CLOSING_IDS
    if settings.max_prompt_tokens is None:
        return room
    return int(min(room, settings.max_prompt_tokens + settings.max_reply_tokens))


def _machine(room: Room) -> str:
    from models.memory.room import gib

    card = "no GPU" if room.card is None else f"{gib(room.card)} of GPU memory free"
    return f"{gib(room.host)} of memory free, {card}"


def _lines(table: Needs, room: Room) -> list[str]:
    from models.memory.room import compared, gib

    rows = [(line.what, gib(line.bytes), "host" if line.on_host and room.card is not None else "")
            for line in table.lines if line.bytes]  # fmt: skip
    width = max(len(what) for what, *_ in rows)
    lines = [table.job, *(f"  {what:<{width}}  {size:>10}  {where}".rstrip() for what, size, where in rows)]
    short = False
    for memory, needed, free in compared(table, room):
        short = short or needed > free
        verdict = "fits" if needed <= free else f"does not fit into {gib(free)}"
        lines.append(f"  {'together, of ' + memory:<{width}}  {gib(needed):>10}  {verdict}")
    return [*lines, f"  {table.lower}"] if short else lines


def _as_json(table: Needs, room: Room, fits: bool) -> dict[str, Any]:
    from models.memory.room import compared

    return {
        "job": table.job,
        "lines": [line._asdict() for line in table.lines],
        "memory": [
            {"of": memory, "needed_bytes": needed, "free_bytes": free} for memory, needed, free in compared(table, room)
        ],
        "fits": fits,
    }
