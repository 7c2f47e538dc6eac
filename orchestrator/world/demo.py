"""The demo: three cycles of the loop in the small world, on an instance of its own, in minutes.

Nothing is remembered but in the instance's database: an interrupted demo asks the rows what is done and goes on.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import result_from_json
from orchestrator import database
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles import record
from orchestrator.cycles.outcomes import ended_as_it_should
from orchestrator.cycles.runs import MEASURE_ELO, Progress, follow, start_cycle
from orchestrator.errors import CycleError
from orchestrator.instance.prefect_api import FlowRunState, PrefectApi
from orchestrator.instance.up import Instance, reaching
from orchestrator.judging import standings
from orchestrator.judging.elo import EloNumbers
from orchestrator.people.raters import create_rater, renew_token
from orchestrator.stages import elo as judging
from orchestrator.stages.promotion import is_initial_policy
from orchestrator.world.console import Console, Phase
from orchestrator.world.raters import Crowd, Task
from orchestrator.world.settings import DemoConfig, cycle_config, write_toml
from orchestrator.world.world import World

# A run that crashed (its worker was killed, say) is started again so often; a failed one is not.
MAX_STARTS = 3
POLL_S = 0.5
WEEK_ZERO = "cycle 0: pretrain the initial policy and put it before the raters"


@dataclass(frozen=True)
class EndedCycle:
    """A cycle that ended with a decision, and the policies that people compare after it."""

    id: int
    number: int
    snapshot_id: int
    initial_id: int


def phases(num_cycles: int, first: str = "start") -> list[Phase]:
    """The plan of the demo from its phase `first` on, with the seconds each part takes on 2 cores."""
    plan = [Phase("start", 12), Phase(WEEK_ZERO, 80)]
    for number in range(1, num_cycles + 1):
        plan += [
            Phase(collecting_phase(number), 30),
            Phase(training_phase(number), 65),
            Phase(judging_phase(number), 18),
        ]
    return plan[[phase.name for phase in plan].index(first) :]


def collecting_phase(turn: int) -> str:
    """Name in the plan of the phase before a training; turns count from 1, cycles also those that were cancelled."""
    return f"turn {turn}: raters compare"


def training_phase(turn: int) -> str:
    """Name in the plan of a training."""
    return f"turn {turn}: train, judge, promote"


def judging_phase(turn: int) -> str:
    """Name in the plan of the phase after a training."""
    return f"turn {turn}: raters compare the new policy with the initial one"


class Demo:
    """One demo on a running instance; `run` returns when all cycles are done and judged."""

    def __init__(
        self, config: DemoConfig, num_cycles: int, instance: Instance, console: Console, *, waits: bool = True
    ) -> None:
        self.config = config
        self.num_cycles = num_cycles
        self.instance = instance
        self.console = console
        self.waits = waits
        """Whether it waits for an operator to end a cycle of another configuration, or ends."""
        self.home = instance.home
        # The stages' own functions are used to count and to read; they look for the instance in the environment.
        os.environ.update(instance.env())
        self.cycle_file = self.home / "cycle.toml"
        self.cycle_config: CycleConfig = parse_config(cycle_config(config, inputs_folder(self.home)))
        self.api = PrefectApi(instance.prefect_api_url)
        self.tokens = self._rater_tokens()

    def run(self) -> list[EndedCycle]:
        """Turn the loop as often as asked; what is done already is not repeated."""
        if not record.anything_live():
            self._turn(WEEK_ZERO, lambda: self.console.begin(WEEK_ZERO))
        self.console.done(WEEK_ZERO)
        for number in range(1, self.num_cycles + 1):
            if len(ended_cycles()) < number:
                self._turn(collecting_phase(number), functools.partial(self._before_training, number))
            self.console.done(training_phase(number))
            done = ended_cycles()
            if len(done) < number:
                raise CycleError(
                    f"The cycle's run ended without a snapshot ({how_the_newest_ended()}). Start the demo again: it "
                    "goes on with new comparisons."
                )
            self._compare_with_initial(number, done[number - 1])
            self.console.done(judging_phase(number))
        self._report_what_raters_said()
        return ended_cycles()[: self.num_cycles]

    def _turn(self, first: str, before: Callable[[], None]) -> None:
        """A run of the cycle after what comes before it; once more where another cycle came between the two.

        `first` is the phase of the plan with which that begins.
        """
        while True:
            make_room(self.cycle_config, self.home, self.console.say, waits=self.waits)
            before()
            if self._run_cycle():
                return
            self.console.plan(phases(self.num_cycles, first))

    def _before_training(self, number: int) -> None:
        self._collect(number)
        self.console.begin(training_phase(number), f"cycle {record.coming_number()}: train, judge, promote")

    @property
    def complete(self) -> bool:
        """Whether all cycles are done and judged."""
        done = ended_cycles()[: self.num_cycles]
        return len(done) == self.num_cycles and all(
            measured_elo(cycle) is not None or is_initial_policy_of(cycle) for cycle in done
        )

    def _collect(self, number: int) -> None:
        """Raters talk to the live policy until there are enough fresh comparisons."""
        raters = self.config.raters
        if record.open_cycle_id() is not None:
            return
        have = record.fresh_comparisons(self.cycle_config).found
        coming = record.coming_number()
        self.console.begin(collecting_phase(number), f"cycle {coming}: raters compare")
        weights: dict[Task, float] = {
            "helpful": raters.helpful_weight,
            "red_team": raters.red_team_weight,
            "red_team_choose_best": raters.choose_best_weight,
        }
        self._sit(f"cycle {coming}", weights, have, raters.comparisons_per_cycle)

    def _compare_with_initial(self, number: int, cycle: EndedCycle) -> None:
        """Raters compare the snapshot with the initial policy and the one before it; Elo comes from these alone."""
        if is_initial_policy_of(cycle):
            self.console.say("the snapshot has the initial policy's weights: there is nothing to compare")
            return
        wanted = self.config.raters.evaluation_comparisons
        have = num_model_comparisons(cycle)
        if have < wanted:
            title = f"cycle {cycle.number}: raters compare the new policy with the initial one"
            self.console.begin(judging_phase(number), title)
            self._sit(f"evaluation {cycle.number}", {"model_comparison": 1.0}, have, wanted, count_ties=True)
        judging.measure_elo_of(cycle.id)
        elo = measured_elo(cycle)
        assert elo is not None, "enough comparisons were made just now"
        low, high = elo.ci
        self.console.say(
            f"Elo {elo.elo:+.0f} [{low:+.0f}, {high:+.0f}] against the initial policy, "
            f"from {elo.num_comparisons} comparisons"
        )

    def _report_what_raters_said(self) -> None:
        """Bring the reports up to date with what raters said after the last cycle."""
        with database.database() as session:
            outdated = judging.outdated_reports(session)
        if outdated:
            state = follow(self.api, self.api.start_run(MEASURE_ELO, {}), list, self.console.say)
            self.console.say(state.line)

    def _sit(
        self, sitting: str, weights: dict[Task, float], have: int, wanted: int, *, count_ties: bool = False
    ) -> None:
        if have >= wanted:
            self.console.say(f"the {wanted} comparisons that are wanted are there already; no more are needed")
            return

        def progress(done: int) -> None:
            # Whoever sits before a pair at the last moment still answers it.
            made = min(have + done, wanted)
            self.console.update(made / wanted, f"{made} of {wanted} comparisons")

        crowd = Crowd(
            self.instance.feedback_url,
            self.tokens,
            taste=self.config.raters.taste,
            agreement=self.config.raters.agreement,
            # What was there already is part of the seed: a sitting that goes on does not ask the same again.
            seed=f"{self.config.seed}/{sitting}/{have}",
            concurrency=self.config.raters.concurrency,
            count_ties=count_ties,
            on_progress=progress,
        )
        tally = crowd.collect(weights, wanted - have)
        self.console.say(
            f"{tally.comparisons} comparisons and {tally.ties} ties in {tally.dialogues} dialogues "
            f"by {len(self.tokens)} raters"
        )

    def _run_cycle(self) -> bool:
        """One run of the cycle's Prefect deployment, followed to its end; False where another cycle was in its way."""
        for attempt in range(1, MAX_STARTS + 1):
            flow_run_id = start_cycle(self.api, self.cycle_file, [])
            state = follow(self.api, flow_run_id, Progress().news, self.console.say)
            if ended_as_it_should(state.type, state.name):
                self.console.say(state.line)
                return True
            if record.in_the_way(self.cycle_config) is not None:
                return False
            if state.type != "CRASHED" or attempt == MAX_STARTS:
                raise _ended_badly(state, self.api, flow_run_id, self.home)
            self.console.say(f"{state.line}; started again, finished stages are not repeated")
        raise AssertionError("the last start has returned or raised")

    def _rater_tokens(self) -> list[str]:
        """A token for each synthetic rater; tokens are not stored, so every start of the demo gives new ones."""
        tokens = []
        with database.database() as session:
            known = set(session.scalars(select(t.Rater.handle).where(t.Rater.kind == "synthetic")))
            for number in range(1, self.config.raters.num_raters + 1):
                handle = f"synthetic-{number:02d}"
                if handle in known:
                    tokens.append(renew_token(session, handle))
                else:
                    tokens.append(create_rater(session, handle, kind="synthetic", platform="demo")[1])
        return tokens


def prepare_inputs(config: DemoConfig, home: Path) -> Path:
    """Write the world's texts and the cycle's configuration where they are not yet; returns the configuration file."""
    file = home / "cycle.toml"
    if not file.exists():
        inputs = inputs_folder(home)
        World(config.seed).write_inputs(
            inputs,
            num_dialogues=config.world.num_dialogues,
            num_evaluation=config.world.num_evaluation,
            taste=config.raters.taste,
        )
        aside = file.with_suffix(".new")
        write_toml(cycle_config(config, inputs), aside)
        aside.replace(file)
    return file


def inputs_folder(home: Path) -> Path:
    """Where the world's texts lie."""
    return home / "world"


def make_room(config: CycleConfig, home: Path, say: Callable[[str], None], *, waits: bool) -> None:
    """Return when no cycle with another configuration is open; while one is, say how to give it up, and wait.

    Raises:
        CycleError: one is open, and nobody waits for it (`waits`); the message names every step of the way out.
    """
    announced = False
    while (other := record.in_the_way(config)) is not None:
        cancel = f"orchestrator cycle cancel {other.number}"
        if not waits:
            raise CycleError(
                f"{other.said}, and only one cycle can be open at a time. To give it up:\n"
                f"    {reaching(home)}\n"
                f"    orchestrator up                 # and in another terminal, after the same first line:\n"
                f"    {cancel}\n"
                "Then end `orchestrator up` with Ctrl-C, and start the demo again; it goes on where it stopped."
            )
        if not announced:
            say(
                f"{other.said}, and only one cycle can be open at a time. The demo waits until it has ended. "
                f"To give it up, in another terminal:\n    {reaching(home)}\n    {cancel}"
            )
            announced = True
        time.sleep(POLL_S)


def how_the_newest_ended() -> str:
    """The newest cycle's state and note, for a person."""
    with database.database() as session:
        newest = session.scalars(select(t.Cycle).order_by(t.Cycle.number.desc()).limit(1)).one()
        return f"cycle {newest.number} is {newest.state}" + (f": {newest.note}" if newest.note else "")


def ended_cycles() -> list[EndedCycle]:
    """Cycles that trained and ended with a decision, oldest first."""
    with database.database() as session:
        rows = session.execute(
            select(t.Cycle.id, t.Cycle.number, t.Decision.snapshot_id)
            .join(t.Decision, t.Decision.cycle_id == t.Cycle.id)
            .where(t.Cycle.number > 0, t.Cycle.state.in_(("promoted", "refused")))
            .order_by(t.Cycle.number, t.Decision.id)
        ).all()
        newest = {number: (cycle_id, snapshot_id) for cycle_id, number, snapshot_id in rows}
        return [
            EndedCycle(cycle_id, number, snapshot_id, initial_of(session, snapshot_id))
            for number, (cycle_id, snapshot_id) in newest.items()
        ]


def initial_of(session: Session, snapshot_id: int) -> int:
    """The initial policy that a snapshot began from."""
    return session.execute(
        select(t.LineageEdge.parent_id).where(t.LineageEdge.child_id == snapshot_id, t.LineageEdge.role == "initial")
    ).scalar_one()


def num_model_comparisons(cycle: EndedCycle) -> int:
    """Comparisons of the cycle's snapshot with other policies, ties included."""
    with database.database() as session:
        digest = session.get_one(t.Artifact, cycle.snapshot_id).digest
        return sum(digest in (game.first, game.second) for game in standings.games(session))


def is_initial_policy_of(cycle: EndedCycle) -> bool:
    """Whether the cycle's snapshot has the initial policy's weights, so that raters don't compare the two."""
    with database.database() as session:
        return is_initial_policy(session, cycle.snapshot_id, cycle.initial_id)


def measured_elo(cycle: EndedCycle) -> EloNumbers | None:
    """The cycle's Elo as it was recorded, or None."""
    with database.database() as session:
        found = session.scalars(
            select(t.Evaluation.numbers)
            .where(t.Evaluation.cycle_id == cycle.id, t.Evaluation.kind == "elo")
            .order_by(t.Evaluation.id.desc())
            .limit(1)
        ).first()
        return result_from_json(EloNumbers, found, where=f"the Elo of cycle {cycle.number}") if found else None


@contextmanager
def counted_seconds(home: Path, started_s: float, demo: Demo) -> Iterator[Callable[[], float]]:
    """Add up what the demo takes over all its starts, interrupted ones too; finding all done adds nothing."""
    file = home / "seconds"

    def so_far() -> float:
        return float(file.read_text()) if file.exists() else 0.0

    before, was_complete = so_far(), demo.complete
    try:
        yield so_far
    finally:
        if not was_complete:
            file.write_text(f"{before + time.monotonic() - started_s:.3f}")


def _ended_badly(state: FlowRunState, api: PrefectApi, flow_run_id: str, home: Path) -> CycleError:
    return CycleError(
        f"The cycle's run ended as {state.line.rstrip('.')}. Its log: {api.ui_url}/runs/flow-run/{flow_run_id}, while "
        f"`orchestrator up` runs after `{reaching(home)}`. The demo goes on where it stopped when it is started again."
    )
