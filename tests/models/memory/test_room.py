"""A job that can't fit is refused before anything is loaded; what may not fit is said; what fits is not looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.jobs import evaluate, train_policy, train_preference_model
from models.memory import room
from models.memory.needs import Need, Needs
from models.memory.room import GIB, Room, check_room, compared, gib
from models.model_folders import loading
from models.runtime.job import Job, JobError
from tests.models.preference_world import polite_comparisons, write_comparison_set

TABLE = Needs("train_policy", (Need("policy", 3 * GIB), Need("last good weights", 5 * GIB, on_host=True)), "Lower it.")


def table() -> Needs:
    """As a job would reckon it, in another process."""
    return TABLE


def unknown() -> Needs:
    """Of a family that can't be run without memory."""
    raise RuntimeError("no fake kernel")


def job(out: Path, inputs: dict[str, Path] | None = None, **spec: Any) -> Job:
    inputs_named = {name: str(folder) for name, folder in (inputs or {}).items()}
    return Job({"job": "x", "inputs": inputs_named, "settings": {}, "seed": 0} | spec, out)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, counted: Any) -> Any:
    """Says how much memory is free, and that nothing is too small to be looked at."""

    def say(host: float, card: float | None = None) -> None:
        found = Room(round(host * GIB), None if card is None else round(card * GIB))
        monkeypatch.setattr(Room, "of", classmethod(lambda cls, device: found))
        monkeypatch.setattr(room, "certainly_fits", lambda folders, room: False)
        monkeypatch.setattr(room, "apart", counted)

    return say


def test_one_memory_holds_all_and_two_hold_their_parts() -> None:
    assert compared(TABLE, Room(9 * GIB)) == [("memory", 8 * GIB, 9 * GIB)]
    assert compared(TABLE, Room(9 * GIB, 4 * GIB)) == [
        ("GPU memory", 3 * GIB, 4 * GIB),
        ("the host's memory", 5 * GIB, 9 * GIB),
    ]


def test_what_fits_is_started_without_a_word(free: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free(8.0)
    check_room(job(tmp_path), table, [])
    free(5.0, 3.0)
    check_room(job(tmp_path), table, [])
    assert capsys.readouterr().err == ""


def test_within_the_tables_tolerance_it_is_started_with_a_note(
    free: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free(7.0)  # 8 · 0.85 are 6.8
    check_room(job(tmp_path), table, [])
    assert capsys.readouterr().err == (
        "note: train_policy needs 8.0 GiB of memory, and 7.0 GiB are free here; it may end for want of memory.\n"
    )


def test_what_cannot_fit_is_refused_by_its_parts(free: Any, tmp_path: Path) -> None:
    free(6.7)
    with pytest.raises(JobError) as refused:
        check_room(job(tmp_path), table, [])
    assert str(refused.value) == (
        "train_policy needs 8.0 GiB of memory, and 6.7 GiB are free here: last good weights 5.0 GiB, policy 3.0 GiB. "
        "Lower it. `orchestrator doctor` shows the table; ORCHESTRATOR_MEMORY_CHECK=off tries it all the same."
    )
    check_room(job(tmp_path, check_memory=False), table, [])
    # Beside a GPU either of the two memories may be too small, and the host's part is named.
    for host, card, memory in ((9.0, 2.0, "GPU memory"), (4.0, 9.0, "the host's memory")):
        free(host, card)
        with pytest.raises(JobError, match=f"of {memory}, and .*last good weights \\(host\\) 5.0 GiB, policy 3.0 GiB"):
            check_room(job(tmp_path), table, [])


def test_a_family_that_cannot_be_reckoned_is_started(
    free: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free(0.001)
    check_room(job(tmp_path), unknown, [])
    assert "the memory that this takes is not known (RuntimeError: no fake kernel)" in capsys.readouterr().err


def test_small_weights_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert room.certainly_fits([tmp_path], Room(100_001))
    assert not room.certainly_fits([tmp_path], Room(100_000))
    assert not room.certainly_fits([tmp_path], Room(200_000, 50_000))
    assert not room.certainly_fits([tmp_path, tmp_path], Room(150_000))


def test_free_memory_is_what_the_system_says_and_no_more_than_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_CGROUPS", ())
    total = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())["MemTotal"]
    here = Room.of(torch.device("cpu"))
    assert here.card is None
    assert 0 < here.host <= 1024 * int(total.split()[0]) * 2
    for name, text in (("max", "4000000"), ("now", "3000000"), ("memory.stat", "anon 1\ninactive_file 500000\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(room, "_CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "now")),))
    # What is used includes files that the container gives up when memory is needed.
    assert Room.of(torch.device("cpu")).host == 1_500_000
    (tmp_path / "max").write_text("max\n")
    assert Room.of(torch.device("cpu")).host > 1_500_000


def test_each_stage_refuses_before_it_loads_weights(
    free: Any,
    tmp_path: Path,
    policy_dir: Path,
    scorer_dir: Path,
    prompts_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    for module in (loading, train_policy, train_preference_model, evaluate):
        for name in ("load_causal_lm", "load_preference_model", "fresh_preference_model", "Roles"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, loaded)
    monkeypatch.setattr("models.policy.roles.load_causal_lm", loaded)
    free(0.0001)
    comparisons = write_comparison_set(tmp_path / "comparisons", polite_comparisons(4, 2))
    judged = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
    for module, inputs, parts in (
        (train_preference_model, {"initial": policy_dir, "comparisons": comparisons}, ("weights", "optimiser")),
        (train_policy, judged, ("policy", "reference", "preference model", "last good weights")),
        (evaluate, judged | {"policy": policy_dir}, ("policy", "initial policy", "preference model")),
    ):
        out = tmp_path / module.NAME
        out.mkdir()
        with pytest.raises(JobError, match=rf"^{module.NAME} needs .* of memory, and .* are free here") as refused:
            module.run(job(out, inputs))
        assert all(f"{part} " in str(refused.value) for part in parts), module.NAME
        assert not (out / "result").exists()


def test_sizes_as_people_read_them() -> None:
    assert [gib(size) for size in (0, 5 << 20, GIB // 2, 10 * GIB)] == ["0 MiB", "5 MiB", "0.5 GiB", "10.0 GiB"]
