"""Checkpoints: copied as they are, written aside, two kept, and what is damaged is passed over for the one before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.runtime.checkpoints import BEFORE, NEWEST, Checkpoints, fits_share, on_host
from models.runtime.job import EXIT_DISK_FULL, Job, main


def payload(step: int) -> dict[str, object]:
    state = {"weights": torch.full((300,), float(step)), "words": ["a", "b"]}
    return {"spec": "s", "step": step, "rng": torch.get_rng_state(), "state": state}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 2 and 3."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(payload(step))
    checkpoints.wait()
    return tmp_path


def test_the_newest_and_the_one_before_are_kept(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {NEWEST, BEFORE}
    found = Checkpoints(written).newest()
    assert found is not None
    assert (found["step"], found["state"]["weights"][0].item()) == (3, 3.0)
    assert torch.load(written / BEFORE, weights_only=True)["step"] == 2


def flipped(data: bytes) -> bytes:
    """One bit changed amid the weights, of which torch itself would say nothing."""
    place = data.index(torch.full((300,), 3.0).numpy().tobytes()) + 600
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "is damaged"),
        (lambda data: data[:-80], "is damaged"),
        (lambda data: b"", "is damaged"),
        (flipped, "its bytes are not those that were written"),
        (lambda data: b"something else", "is damaged"),
        (None, "is missing"),
    ],
    ids=["half", "without its end", "empty", "a bit flipped", "other bytes", "missing"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    written: Path, damage: Callable[[bytes], bytes] | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = written / NEWEST
    if damage is None:
        newest.unlink()
    else:
        newest.write_bytes(damage(newest.read_bytes()))
    checkpoints = Checkpoints(written)
    found = checkpoints.newest()
    assert found is not None
    assert (found["step"], found["state"]["weights"][0].item()) == (2, 2.0)
    told = capsys.readouterr().err
    assert f"the checkpoint {newest} " in told
    assert said in told
    assert "going on from the one before" in told
    # The good one must not be what the next one pushes out: damaged in its turn, it is there to go on from.
    checkpoints.save(payload(4))
    checkpoints.wait()
    newest.write_bytes(b"")
    again = Checkpoints(written).newest()
    assert again is not None
    assert again["step"] == 2


def test_a_lost_byte_of_the_digest_loses_no_checkpoint(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What is left is a whole file of before there was a digest.
    data = (written / NEWEST).read_bytes()
    for left in (data[:-70] + b"x" + data[-69:], data[:-1], data[:-72]):
        (written / NEWEST).write_bytes(left)
        found = Checkpoints(written).newest()
        assert found is not None
        assert found["step"] == 3
    assert capsys.readouterr().err == ""


def test_where_nothing_can_be_read_the_job_starts_over_and_says_so(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (NEWEST, BEFORE):
        (written / name).write_bytes(b"")
    assert Checkpoints(written).newest() is None
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("going on from the one before.")
    assert second.endswith("starting over.")
    assert Checkpoints(written / "nothing").newest() is None
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_before_there_was_a_digest_is_read(tmp_path: Path) -> None:
    torch.save(payload(7), tmp_path / NEWEST)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found["step"] == 7
    torch.save({"model": {}}, tmp_path / NEWEST)
    assert Checkpoints(tmp_path).newest() is None


def test_what_changes_after_it_was_saved_is_not_in_it(tmp_path: Path) -> None:
    weights, words, tied = torch.zeros(1 << 20), ["a"], torch.ones(3)
    state = {"weights": weights, "words": words, "one": tied, "other": tied, "view": tied[:2]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(payload(1) | {"state": state})
    weights.fill_(5.0)
    words.append("b")
    checkpoints.wait()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert (found["state"]["weights"].sum().item(), found["state"]["words"]) == (0.0, ["a"])
    # Tied weights are written once, and are two names of one tensor afterwards, as without a copy.
    copy = on_host(state)
    assert copy["one"] is copy["other"]
    assert copy["view"].tolist() == [1.0, 1.0]
    assert copy["one"] is not tied


def test_time_in_checkpoints_keeps_within_its_share() -> None:
    # 10 s are free; of 200 s a share of 0.05 is another 10.
    assert fits_share(0.05, spent_s=18.0, next_s=2.0, elapsed_s=200.0)
    assert not fits_share(0.05, spent_s=18.0, next_s=2.1, elapsed_s=200.0)
    assert fits_share(0.05, spent_s=0.0, next_s=10.0, elapsed_s=0.0)
    assert not fits_share(0.05, spent_s=0.0, next_s=10.1, elapsed_s=0.0)


def test_a_job_takes_them_further_apart_where_they_would_take_more_than_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each holds the job up for 30 s, and so does each step take: at 0.05 the free 10 s and a twentieth of the time.
    now = [0.0]
    monkeypatch.setattr("models.runtime.job.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Checkpoints, "save", lambda self, payload: now.__setitem__(0, now[0] + 30.0))

    def saved(share: float) -> list[int]:
        now[0] = 0.0
        job, steps = Job({"job": "example"}, tmp_path), []
        for step in range(1, 101):
            now[0] += 30.0
            if job.checkpoint_due(step, 100, 2, share):
                steps.append(step)
                job.save_checkpoint(step, {})
        return steps

    # The first costs what nobody knows. The next: 60 <= 10 + 0.05 (30 s + 30), so from s = 32.33 steps on, at 34; the
    # third 90 <= 10 + 0.05 (30 s + 60), from 51.3, at 52; from 70.3 and 89.3 the next, 19 steps apart: 30 s in 600.
    assert saved(0.05) == [2, 34, 52, 72, 90]
    assert saved(1.0) == list(range(2, 100, 2))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_full_disk_beside_the_steps_ends_the_job_as_one_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Job) -> None:
        job.save_checkpoint(1, {"weights": torch.ones(1 << 16)})
        job.publish(lambda folder: None, {})

    spec = tmp_path / "spec.json"
    spec.write_text('{"job": "example"}')
    folder = tmp_path / "out" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / f"{NEWEST}.tmp").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as ended:
        main("example", run, ["--spec", str(spec), "--out", str(tmp_path / "out")])
    assert ended.value.code == EXIT_DISK_FULL
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device")
    assert not (tmp_path / "out" / "result").exists()
    # What was begun is gone: it may be what fills the disk.
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_full_disk_is_told_by_the_next_checkpoint_and_leaves_the_ones_before(written: Path) -> None:
    checkpoints = Checkpoints(written)
    (written / f"{NEWEST}.tmp").symlink_to("/dev/full")
    checkpoints.save(payload(4))
    with pytest.raises(OSError, match="No space left") as full:
        checkpoints.save(payload(5))
    assert full.value.errno == errno.ENOSPC
    found = Checkpoints(written).newest()
    assert found is not None
    assert found["step"] == 3
