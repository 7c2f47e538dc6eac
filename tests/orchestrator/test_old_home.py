"""A home that an old revision left behind is opened, read, served and gone on with by the present code.

How the home was made is in `tests/fixtures/home_591480d/README.md`. Everything goes through commands and HTTP.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from benchmarks.old_home import CONFIG_FILE, compare_replies, listening, restore
from benchmarks.same_artifacts import environment, run_logged
from tests.waiting import wait_for

if TYPE_CHECKING:
    from orchestrator.instance.postgres import EmbeddedPostgres

PROJECT = Path(__file__).resolve().parents[2]
FIXTURE = PROJECT / "tests" / "fixtures" / "home_591480d"
INITIAL = "sha256:2f920cbe2eb73992b2f32ace8271fa9a53cd9bdca4f16ab1fc101e8c39a4a2f0"
LIVE = "sha256:3ec358f1c2ce242ea8d50cbed43adc944353fc00b84f27879643769a8c669919"
DETECTOR = "sha256:8d2192cf07eda333a884c88c37f489441638c456c6d8c2edf60e0b87f376efa7"
KINDS = {
    "comparison_set": 4, "data_check": 4, "distillation_prompt": 1, "distillation_set": 1, "evaluation": 9,
    "initial_policy": 2, "ood_detector": 2, "ood_prompts": 1, "orientation_pairs": 2, "pmp_model": 1, "pmp_pairs": 1,
    "preference_model": 6, "prompt_set": 4, "reference_set": 1, "report": 3, "skill_set": 1, "snapshot": 2, "text": 2,
}  # fmt: skip
OLD_ARTIFACTS = 47
"""How many there are, and the highest id."""
REPORTED = {
    1: (
        f"**Promoted**: `{LIVE}`",
        "100 (73 train, 27 held out)",
        "1.000 [0.875, 1.000] (n = 27 from 27 dialogues)",
        "KL 0.000524 to 0.0002327 nats per token in 433 tokens",
        "0.167 [0.030, 0.564] (n = 6)",
        "0.0517 nats per reply",
        "-0.682 (initial policy: -0.696)",
        "-0.645 [-0.673, -0.617] at KL 0.193 nats",
        "AUROC 0.371, of the length alone 0.854",
        DETECTOR,
    ),
    2: (
        "**Refused**",
        "the mean ratio was 0.997",
        "108 (79 train, 29 held out)",
        "0.966 [0.819, 0.994] (n = 29 from 28 dialogues)",
        "slope 92.21 [26.12, 158.29]",
    ),
    3: (
        "of the 60 orientation pairs of",
        "orders 0% rightly, interval [0.00, 0.06]",
        "148 (108 train, 40 held out)",
        "0.975 [0.866, 0.996] (n = 40 from 39 dialogues)",
    ),
    4: ("168 (123 train, 45 held out)",),
}
"""Figures of the reports as 591480d printed them, by cycle."""
_numbers = itertools.count(1)

pytestmark = pytest.mark.slow


class OldHome:
    """The restored home, and the present code's commands on it."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.env = environment(PROJECT, folder, database_url) | {"ORCHESTRATOR_ADMIN_TOKEN": "admin"}

    def orchestrator(self, *words: str) -> str:
        """What a command prints; it has to end well."""
        return run_logged(["-m", "orchestrator.cli", *words], self.env, self.folder, self.folder / "command.log")

    def json(self, *words: str) -> Any:
        return json.loads(self.orchestrator(*words, "--json"))

    def states(self) -> dict[int, str]:
        return {cycle["cycle"]: cycle["state"] for cycle in self.json("cycle", "list")}


@pytest.fixture
def old_home(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[OldHome]:
    """The old home in a folder and a database of this test's own, migrated."""
    name = f"old_home_{os.getpid()}_{next(_numbers)}"
    connection = postgres.connect("postgres")
    connection.cursor().execute(f"create database {name}")
    home = OldHome(tmp_path / "home", postgres.url_of(name))
    restore(FIXTURE, home.folder, postgres.url_of(name))
    home.orchestrator("migrate")
    yield home
    connection.cursor().execute(f"drop database {name} with (force)")
    connection.close()


def test_its_artifacts_are_whole_and_its_reports_show_what_they_showed(old_home: OldHome) -> None:
    assert f"{OLD_ARTIFACTS} artifacts, 2894351 bytes: all are what their digests say" in old_home.orchestrator(
        "verify"
    )
    assert old_home.states() == {1: "promoted", 2: "refused", 3: "cancelled", 4: "open"}

    shown = {number: old_home.orchestrator("cycle", "show", str(number)) for number in (1, 2, 3, 4)}
    for number, figures in REPORTED.items():
        for figure in figures:
            assert figure in shown[number], f"cycle {number}"
    for number in (1, 2, 3):
        folder = Path(shown[number].rpartition("The pictures: ")[2].strip())
        pictures = list(folder.glob("*.png"))
        assert pictures
        assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
        assert old_home.json("cycle", "show", str(number))


def test_its_rows_are_listed_with_their_lineage(old_home: OldHome) -> None:
    artifacts = old_home.json("artifacts", "--limit", "0")
    assert Counter(artifact["kind"] for artifact in artifacts) == KINDS
    assert all(artifact["results"] for artifact in artifacts if artifact["kind"] == "evaluation")

    # What a rater chose went into the sets of the later cycles, and the snapshot came from what cycle 1 made.
    went_into = old_home.orchestrator("lineage", "rater:anna")
    assert went_into.count(", comparison_set ") == 3
    assert "cycle 4 (4 comparisons)" in went_into
    came_from = old_home.orchestrator("lineage", LIVE)
    for kind in ("initial_policy", "pmp_model", "skill_set", "reference_set", "distillation_set", "comparison_set"):
        assert kind in came_from
    assert "20 replies" in came_from

    counts = {rater["handle"]: rater["num_comparisons"] for rater in old_home.json("rater", "list")}
    assert (counts["anna"], counts["ben"]) == (6, 6)
    helpful = next(entry for entry in old_home.json("elo") if entry["question"] == "helpful")
    assert {row["name"]: (row["won"], row["lost"]) for row in helpful["rows"]} == {INITIAL: (2, 2), LIVE: (2, 2)}
    assert DETECTOR[:19] in old_home.orchestrator("ood", "list")


def test_its_live_policy_answers_and_its_raters_go_on(old_home: OldHome) -> None:
    token = old_home.json("rater", "token", "anna")["token"]
    detector = ["--detector", DETECTOR, "--detector-action", "flag"]
    with listening(
        ["serve-policy", *detector], old_home.env, old_home.folder, old_home.folder / "policy.log"
    ) as policy_url:
        wait_for("a live policy", lambda: httpx.get(f"{policy_url}/health").json()["status"] == "ok")
        health = httpx.get(f"{policy_url}/health").json()
        assert health["live"] == LIVE
        assert {snapshot["digest"]: snapshot["fingerprint"] for snapshot in health["snapshots"]}[LIVE] == "proven"

        request = {
            "model": "policy-live",
            "messages": [{"role": "user", "content": "What is 7?"}],
            "max_tokens": 8,
            "seed": 1,
        }
        answers = [httpx.post(f"{policy_url}/v1/chat/completions", json=request, timeout=60) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        first, second = (answer.json()["choices"][0]["message"]["content"] for answer in answers)
        assert first == second
        assert answers[0].json()["usage"]["completion_tokens"] > 0

        env = old_home.env | {"ORCHESTRATOR_POLICY_URL": policy_url}
        with listening(["serve-feedback"], env, old_home.folder, old_home.folder / "feedback.log") as feedback_url:
            compare_replies(feedback_url, [token])
    counts = {rater["handle"]: rater["num_comparisons"] for rater in old_home.json("rater", "list")}
    assert (counts["anna"], counts["ben"]) == (12, 6)


def test_its_open_cycle_is_gone_on_with_and_finds_what_it_had_made(old_home: OldHome) -> None:
    said = old_home.orchestrator("cycle", "run", "--inline", "--config", CONFIG_FILE)
    assert "Promoted. Cycle 4: a new policy answers raters." in said
    assert old_home.states() == {1: "promoted", 2: "refused", 3: "cancelled", 4: "promoted"}

    made = {artifact["id"]: artifact for artifact in old_home.json("artifacts", "--limit", "0")}
    # The preference model is the one that the old code trained; only its twin is new.
    models = [made[id_] for id_ in sorted(made) if made[id_]["kind"] == "preference_model" and made[id_]["cycle"] == 4]
    assert [(model["id"] <= OLD_ARTIFACTS, model["settings"]["settings"].get("part")) for model in models] == [
        (True, None),
        (False, "watcher"),
    ]
    snapshot = next(made[id_] for id_ in sorted(made) if made[id_]["kind"] == "snapshot" and made[id_]["cycle"] == 4)
    assert snapshot["digest"] in old_home.orchestrator("cycle", "show", "4")
    assert "all are what their digests say" in old_home.orchestrator("verify")
