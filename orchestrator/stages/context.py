"""What every stage shares: its row in the ledger, finding before redoing, running a job, publishing the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Self

from sqlalchemy import Engine, func, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine, transaction
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles.presence import at_work
from orchestrator.cycles.record import check_open, open_cycle_row
from orchestrator.errors import CycleCancelled, CycleError, ServiceUnavailable
from orchestrator.instance.devices import CPU, resolved
from orchestrator.instance.disks import as_disk_full
from orchestrator.instance.training_jobs import fresh_name, run_job
from orchestrator.settings import Settings, code_revision, flow_run_id
from orchestrator.stages.job_progress import JobProgress
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore

Write = Callable[[Path], Mapping[str, object]]
"""Fills a directory with an artifact's files and returns its results."""


Occasion = int | CycleConfig
"""What a stage is taken for: a cycle, by its id, or an experiment, which is no cycle and has a configuration alone."""


class StageContext:
    """One attempt at one stage: settings, configuration, database and store, and its row in `stages`.

    As a context manager it writes the row as running, and at the end whether the stage was done, found or failed. An
    experiment's stages have no row: what they make is found again by its fingerprint all the same.

    A stage of a cycle writes only while the cycle is open; every transaction of it makes sure of that. `after_end` is
    for the few that measure or tell something of a cycle that may be over.
    """

    def __init__(self, occasion: Occasion, name: str, *, after_end: bool = False) -> None:
        self.cycle_id: int | None = None if isinstance(occasion, CycleConfig) else occasion
        self._only_while_open = self.cycle_id is not None and not after_end
        self.name = name
        self.settings = Settings.from_env()
        self.engine: Engine = make_engine(self.settings.require_database_url())
        self.store = ArtifactStore(self.settings.artifact_url, self.settings.home / "cache")
        self.config: CycleConfig
        if isinstance(occasion, CycleConfig):
            self.config = occasion
        self.job_seconds = 0.0
        self._artifact_id: int | None = None
        self._fingerprint: str | None = None
        self._built = False
        self._stage_id: int | None = None
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        self._exits.callback(self.engine.dispose)
        if self.cycle_id is None:
            return self
        try:
            self._begin(self.cycle_id)
        except BaseException:
            self._exits.close()
            raise
        return self

    def _begin(self, cycle_id: int) -> None:
        # Seen at work before it is asked whether the cycle is open: who cancels closes it first, and then looks.
        self._exits.enter_context(at_work(cycle_id, self.name))
        with self.session() as session:
            cycle = session.get(t.Cycle, cycle_id)
            if cycle is None:
                raise CycleError(f"There is no cycle with id {cycle_id}.")
            self.config = parse_config(cycle.config, f"the configuration of cycle {cycle.number}")
            stage = t.Stage(cycle_id=cycle_id, name=self.name, flow_run_id=flow_run_id())
            session.add(stage)
            session.flush()
            self._stage_id = stage.id

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._exits:
            told = as_disk_full(error, self.settings.home) or error
            if self._stage_id is not None and not isinstance(error, CycleCancelled):
                self._end(self._stage_id, told)
            if told is not error and told is not None:
                raise told from None

    def _end(self, stage_id: int, error: BaseException | None) -> None:
        with self.session() as session:
            stage = session.get_one(t.Stage, stage_id)
            stage.ended_at = datetime.now(UTC)
            stage.artifact_id = self._artifact_id
            stage.fingerprint = self._fingerprint or stage.fingerprint
            stage.job_seconds = self.job_seconds
            if error is not None:
                stage.state = "failed"
                stage.error = f"{type(error).__name__}: {error}"[:4000]
            else:
                stage.state = "done" if self._built or self._artifact_id is None else "found"
                self._close_killed_attempts(session)

    def _close_killed_attempts(self, session: Session) -> None:
        """A process that was killed could not say so; this attempt, which ended well, says it for the earlier ones.

        Attempts are at the same thing; stages of one name may be at several at once, such as two policies that are
        scored. One that had not come to know its fingerprint was another flow run's.
        """
        same = t.Stage.fingerprint.is_not_distinct_from(self._fingerprint)
        never_knew = t.Stage.fingerprint.is_(None) & t.Stage.flow_run_id.is_distinct_from(flow_run_id())
        session.execute(
            update(t.Stage)
            .where(t.Stage.cycle_id == self.cycle_id, t.Stage.name == self.name, t.Stage.state == "running")
            .where(t.Stage.id < self._stage_id, same | never_knew)
            .values(state="failed", error="its process was killed", ended_at=func.clock_timestamp())
        )

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, rolled back on an error.

        Raises:
            CycleCancelled: the stage's cycle is not open any more.
        """
        with transaction(self.engine) as session:
            if self._only_while_open and self.cycle_id is not None:
                open_cycle_row(session, self.cycle_id)
            yield session

    def check_wanted(self) -> None:
        """Ask, while a job is at work, whether anybody still wants what it makes.

        Raises:
            CycleCancelled: the stage's cycle is not open any more.
        """
        if self._only_while_open and self.cycle_id is not None:
            # A database that is started again meanwhile is no reason to end a job of hours.
            with suppress(ServiceUnavailable, OperationalError):
                check_open(self.cycle_id)

    @contextmanager
    def beside_job(self, work: Path) -> Iterator[Callable[[], None]]:
        """What is to be done every second while a job works in there: ask whether it is wanted, tell how far it is."""
        telling = JobProgress(self.engine, self._stage_id, work) if self._stage_id is not None else None

        def every_second() -> None:
            self.check_wanted()
            if telling is not None:
                telling.tell()

        try:
            yield every_second
        finally:
            if telling is not None:
                telling.tell(last=True)

    def artifact(self, artifact_id: int) -> t.Artifact:
        """The row of an artifact."""
        with self.session() as session:
            found = session.get(t.Artifact, artifact_id)
        if found is None:
            raise CycleError(f"There is no artifact with id {artifact_id}.")
        return found

    def fetch(self, artifact_id: int) -> Path:
        """The artifact's directory, verified."""
        artifact = self.artifact(artifact_id)
        with self.session() as session:
            ledger.check_whole(session, [artifact])
        return self.store.fetch(artifact.digest)

    def results(self, artifact_id: int) -> Mapping[str, object]:
        """The numbers an artifact was published with."""
        return self.artifact(artifact_id).results

    def record_evaluation(
        self, kind: str, subject_id: int, numbers: Mapping[str, object], artifact_id: int | None = None
    ) -> None:
        """Append what was measured about an artifact, once per cycle and measurement."""
        with self.session() as session:
            ledger.record_evaluation(session, self.cycle_id, kind, subject_id, numbers, artifact_id)

    def fail(self, message: str) -> NoReturn:
        """End the stage, and with it the cycle flow, with a message for the operator."""
        raise CycleError(message)

    def working_on(self, fingerprint: str) -> None:
        """Say what the stage is making before it is made: its work directory, and the job's log, bear this name."""
        if self._stage_id is not None:
            with self.session() as session:
                session.get_one(t.Stage, self._stage_id).fingerprint = fingerprint

    def built(self, artifact_id: int, fingerprint: str, *, found: bool) -> None:
        """Remember which artifact the stage ends with."""
        self._artifact_id = artifact_id
        self._fingerprint = fingerprint
        self._built = self._built or not found


def build(
    context: StageContext,
    kind: str,
    settings: Mapping[str, object],
    inputs: dict[str, int],
    write: Write,
    *,
    fresh: bool = False,
    whole: bool = True,
) -> int:
    """The artifact with this kind, settings and inputs: found in the ledger, or written now and published.

    `whole` says whether an input of which text was erased is refused.
    """
    fingerprint, _, found_id = _sought(context, kind, settings, inputs, fresh, whole=whole)
    if found_id is not None:
        return found_id
    context.working_on(fingerprint)
    work = work_directory(context, fingerprint, fresh)
    out = work / "write"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    results = write(out)
    artifact_id = _publish(context, kind, fingerprint, out, settings, results, inputs)
    shutil.rmtree(work)
    return artifact_id


def _sought(
    context: StageContext,
    kind: str,
    settings: Mapping[str, object],
    inputs: dict[str, int],
    fresh: bool,
    whole: bool = True,
) -> tuple[str, dict[str, str], int | None]:
    """Fingerprint of what is to be made, its inputs' digests by role, and its id where the ledger has it already."""
    with context.session() as session:
        digests = _digests(session, inputs, whole)
        fingerprint = ledger.fingerprint(kind, settings, digests)
        found = None if fresh else ledger.find(session, fingerprint)
        if found is not None:
            if whole:
                ledger.check_whole(session, [found])
            context.built(found.id, fingerprint, found=True)
    return fingerprint, digests, found.id if found is not None else None


def run_job_stage(
    context: StageContext,
    *,
    kind: str,
    job: str,
    inputs: dict[str, int],
    settings: Mapping[str, object],
    fresh: bool = False,
) -> int:
    """The artifact that a training job makes from these inputs: found in the ledger, or made now.

    Logs, metrics and times stay in the work directory; only what the job published enters the store.
    """
    device = resolved(context.settings.device, context.settings.python)
    requested = requested_of(job, context.config.seed, settings, device)
    fingerprint, digests, found_id = _sought(context, kind, requested, inputs, fresh)
    if found_id is not None:
        return found_id
    context.working_on(fingerprint)
    work = work_directory(context, fingerprint, fresh)
    folders = {role: context.store.fetch(digest) for role, digest in digests.items()}
    with context.beside_job(work) as every_second:
        run = run_job(
            job,
            inputs=folders,
            settings=settings,
            seed=context.config.seed,
            work=work,
            # On a CPU as it always was, so that checkpoints of before go on.
            device=context.settings.device if device == CPU else device,
            python=context.settings.python,
            check_wanted=every_second,
        )
    context.job_seconds += run.seconds
    results = json.loads((run.result / "results.json").read_text(encoding="utf-8"))
    artifact_id = _publish(context, kind, fingerprint, run.result, requested, results, inputs)
    shutil.rmtree(run.result)
    return artifact_id


def requested_of(job: str, seed: int, settings: Mapping[str, object], device: str) -> dict[str, object]:
    """What an artifact is made from beside its inputs, of which its fingerprint is: the device too, since a GPU gives
    other last digits. A CPU goes without saying, as it did before devices were part of it."""
    requested: dict[str, object] = {"job": job, "seed": seed, "settings": settings}
    return requested if device == CPU else requested | {"device": device}


def _digests(session: Session, inputs: dict[str, int], whole: bool) -> dict[str, str]:
    """The digest of the input in each role; ArtifactError where text of one was erased and all must be `whole`."""
    artifacts = {role: session.get_one(t.Artifact, id_) for role, id_ in inputs.items()}
    if whole:
        ledger.check_whole(session, list(artifacts.values()))
    return {role: artifact.digest for role, artifact in artifacts.items()}


def work_directory(context: StageContext, fingerprint: str, fresh: bool) -> Path:
    """Where the stage works: one place per fingerprint, so that a second attempt finds the first one's checkpoint."""
    name = fresh_name(fingerprint, context.cycle_id) if fresh else fingerprint
    return context.settings.home / "work" / name


def _publish(
    context: StageContext,
    kind: str,
    fingerprint: str,
    directory: Path,
    settings: Mapping[str, object],
    results: Mapping[str, object],
    inputs: dict[str, int],
) -> int:
    published = context.store.publish(directory)
    with context.session() as session:
        artifact = ledger.record(
            session,
            kind=kind,
            fingerprint=fingerprint,
            published=published,
            settings=settings,
            results=results,
            inputs=inputs,
            cycle_id=context.cycle_id,
            code_revision=code_revision(),
        )
        context.built(artifact.id, fingerprint, found=False)
        return artifact.id
