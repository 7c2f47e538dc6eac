"""Stages of the comparisons: the freeze, and the check of what was frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.runtime.results import part_to_json, result_to_json
from orchestrator.data import check, freeze, named_files
from orchestrator.stages.context import StageContext, build


def freeze_comparisons(cycle_id: int, *, fresh: bool = False) -> int:
    """Take every comparison committed so far (once per cycle) and write the comparison set. Returns its artifact."""
    with StageContext(cycle_id, "freeze_comparisons") as context:
        section = context.config.comparisons
        with context.session() as session:
            frozen = freeze.freeze(session, cycle_id)
            freeze_id = frozen.id
            previous = freeze.previous_comparison_set(session, freeze_id, section)

        def write(out: Path) -> Mapping[str, object]:
            earlier = context.store.fetch(previous.digest) if previous is not None else None
            return part_to_json(freeze.build_comparison_set(context.engine, freeze_id, section, earlier, out))

        # What a freeze holds never changes, so its id stands for its content, within one database.
        settings = section.selection() | {"freeze_id": freeze_id, "freeze": freeze.freeze_digest(frozen)}
        return build(context, "comparison_set", settings, {}, write, fresh=fresh)


def check_data(cycle_id: int, comparison_set_id: int, *, fresh: bool = False) -> int:
    """Count repeats in the comparison set, and texts of the configured evaluation files. Returns its artifact."""
    with StageContext(cycle_id, "check_data") as context:
        files = [Path(file) for file in context.config.comparisons.check_against]
        settings = {"against": [[check.name_of(file), named_files.file_digest(file)] for file in files]}

        def write(out: Path) -> Mapping[str, object]:
            return result_to_json(check.check_comparison_set(context.fetch(comparison_set_id), files, out))

        return build(context, "data_check", settings, {"comparisons": comparison_set_id}, write, fresh=fresh)
