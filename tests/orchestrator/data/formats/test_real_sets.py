"""The real sets come in whole: counts by hand from the sets' own README, under `ORCHESTRATOR_DATA`."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from orchestrator.data.importing import ImportRequest, import_file

# file: records in it, comparisons read, imported, reasons of the quarantine.
EXPECTED: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "hh_harmless_base/train.jsonl.gz": (1281, 1281, 1281, {}),
    "hh_harmless_base/dev.jsonl.gz": (353, 353, 353, {}),
    # 3 records of the set have chosen == rejected: 1 in train_a, 2 in dev.
    "hh_helpful_single_turn/train_a.jsonl.gz": (2803, 2803, 2802, {"identical_replies": 1}),
    "hh_helpful_single_turn/train_b.jsonl.gz": (2858, 2858, 2858, {}),
    "hh_helpful_single_turn/dev.jsonl.gz": (2783, 2783, 2781, {"identical_replies": 2}),
    # 5 records stand in the file twice.
    "dpo_en_demo/dpo_en_demo.json.gz": (300, 300, 295, {"repeat": 5}),
    # One (judge, question, pair, turn) vote occurs twice.
    "mt_bench_human/human_judgments_train.jsonl": (1987, 1987, 1972, {"identical_replies": 14, "repeat": 1}),
    "mt_bench_human/human_judgments_dev.jsonl": (345, 345, 341, {"identical_replies": 4}),
    "mt_bench_human/gpt4_pair_judgments.jsonl": (1680, 1680, 1667, {"identical_replies": 13}),
    # 5 ratings are a second one of the same comparison by the same evaluator.
    "tulu1_human_eval/train.jsonl": (667, 667, 648, {"identical_replies": 14, "repeat": 5}),
    "tulu1_human_eval/dev.jsonl": (118, 118, 114, {"identical_replies": 4}),
    # 33 + 35 + 65 + 104 + 70 are the 307 of the README; the smallest and the one with most texts.
    "llmbar/adversarial_manual.json": (33, 33, 33, {}),
    "llmbar/natural.json": (70, 70, 70, {}),
    # 66 trees imply 506 pairs; 6 replies have no rank beside siblings.
    "oasst_trees_en100/trees.jsonl.gz": (66, 512, 506, {"unranked": 6}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_record_is_imported_or_in_quarantine(session: Session, data_dir: Path, name: str) -> None:
    records, read, imported, reasons = EXPECTED[name]
    report = import_file(session, data_dir / name)
    assert (report.records, report.read, report.imported, report.already_there) == (records, read, imported, 0)
    assert report.reasons == reasons
    assert report.read == report.imported + report.quarantined

    again = import_file(session, data_dir / name, ImportRequest())
    assert (again.read, again.imported, again.already_there) == (read, 0, imported)
    assert again.reasons == reasons
