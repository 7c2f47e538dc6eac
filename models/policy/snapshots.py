"""Snapshots of a PPO run at even steps of √KL, chosen while nobody knows how far the run will go.

Weights are written whenever √KL first reaches a new multiple of a step. When that makes too many, the step doubles and
every other one is given up. At the end those nearest to even steps are taken. Used by models/jobs/train_policy.py.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from models.policy.results import CurvePoint, KeptSnapshot
from models.runtime.files import link_or_copy
from models.runtime.results import part_to_json

# √nat per reply. A KL of 1e-4 nats is what rounding of log-probs may look like; finer steps say nothing.
FIRST_STEP = 0.01
# Candidates kept for each snapshot that is asked for: with fewer the chosen ones stand unevenly, more cost disk.
CANDIDATES_PER_SNAPSHOT = 3
# Of the result of a run, in which its snapshots lie.
FOLDER = "snapshots"


class SnapshotsState(TypedDict):
    """What a checkpoint holds of the candidates; the weights themselves are on disk already."""

    step: float
    kept: list[Mapping[str, Any]]
    """Fields of `CurvePoint`."""


class SnapshotKeeper:
    """Candidates for the snapshots of one run, each a folder below `folder`; resumable with the job's checkpoint.

    A candidate is the point of the curve at which its weights were measured.
    """

    # The one being written, the newest and the one before: a job may go on from any of them.
    CHECKPOINTS = 3

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.step = FIRST_STEP
        self.kept: list[CurvePoint] = []
        self._named: list[set[str]] = []  # by the last checkpoints

    def offer(self, point: CurvePoint, write: Callable[[Path, CurvePoint], None]) -> None:
        """Keep the policy as it is now, measured as `point`, if it is the first at its step of √KL.

        `write` fills an empty directory with its weights. Nothing is deleted here: a job that is killed goes on from a
        checkpoint that still names what was given up since. See `checkpointed`.
        """
        if self.count == 0 or self._level(point) <= max((self._level(kept) for kept in self.kept), default=0):
            return
        self.kept.append(point)
        self._write(point, write)
        while len(self.kept) > CANDIDATES_PER_SNAPSHOT * self.count:
            self.step *= 2
            first = {self._level(kept): kept for kept in reversed(self.kept)}
            self.kept = [kept for level, kept in sorted(first.items()) if level > 0]

    def checkpointed(self) -> None:
        """After a checkpoint was handed over: delete the folders that no checkpoint names from which a job may go on.

        A job that was started again doesn't know what those before its start name, and deletes nothing at first.
        """
        self._named = [*self._named, {self.place(kept).name for kept in self.kept}][-self.CHECKPOINTS :]
        if len(self._named) == self.CHECKPOINTS:
            self._delete_but(set().union(*self._named))

    def start_over(self) -> None:
        """Delete what a job left that went on from nothing."""
        self._delete_but(set())

    def _delete_but(self, needed: set[str]) -> None:
        if self.folder.exists():
            for folder in self.folder.iterdir():
                if folder.name not in needed:
                    shutil.rmtree(folder)

    def place(self, point: CurvePoint) -> Path:
        """Where a candidate's weights lie."""
        return self.folder / str(point.samples)

    def chosen(self) -> list[CurvePoint]:
        """The candidates nearest to even steps of √KL between 0 and the farthest point, at most `count`, by √KL.

        At the two ends are the initial policy and the run's result, which are there anyway.
        """
        if not self.kept:
            return []
        end = max(_root(kept) for kept in self.kept)
        found: dict[int, CurvePoint] = {}
        for place in range(1, self.count + 1):
            nearest = min(self.kept, key=lambda kept: (abs(_root(kept) - end * place / (self.count + 1)), kept.samples))
            found[nearest.samples] = nearest
        return sorted(found.values(), key=_root)

    def listed(self) -> tuple[KeptSnapshot, ...]:
        """The chosen ones, each with the folder of the result that it gets: snapshots/01, /02 …"""
        return tuple(
            KeptSnapshot(**asdict(point), folder=f"{FOLDER}/{number:02}")
            for number, point in enumerate(self.chosen(), start=1)
        )

    def copy_chosen(self, result: Path) -> None:
        """Put the weights of the chosen ones into their folders below `result`.

        The candidates stay: a job that is killed before its result is complete needs them again.
        """
        for point in self.listed():
            shutil.copytree(self.place(point), result / point.folder, copy_function=link_or_copy)

    def state_dict(self) -> SnapshotsState:
        """For the job's checkpoint."""
        return {"step": self.step, "kept": [part_to_json(kept) for kept in self.kept]}

    def load_state_dict(self, state: SnapshotsState) -> None:
        """As it was at the checkpoint; what was written since will be written again, in its place."""
        self.step, self.kept = float(state["step"]), [CurvePoint(**kept) for kept in state["kept"]]

    def _level(self, point: CurvePoint) -> int:
        return int(_root(point) / self.step)

    def _write(self, point: CurvePoint, write: Callable[[Path, CurvePoint], None]) -> None:
        target = self.place(point)
        # Left over from before the job was killed, perhaps half written.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write(target, point)


def _root(point: CurvePoint) -> float:
    return math.sqrt(max(0.0, point.kl_nats))
