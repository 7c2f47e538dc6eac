"""The lines that PPO writes while it runs, as a table for a terminal. Whose lines, is in `ppo_runs.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from orchestrator.reports.ppo_runs import MetricsLine
from orchestrator.reports.wording import number

# Title, key in metrics.jsonl, format, and what it is. A column that a run does not have (no watcher) stays out of its
# table.
COLUMNS = (
    ("step", "step", "d", "iteration"),
    ("score", "objective/scores", ".3f", "mean PM score of the rollout, PM units"),
    ("helpful", "objective/scores_helpful", ".3f", "of its helpful prompts alone"),
    ("harmless", "objective/scores_harmless", ".3f", "of its red-team prompts alone"),
    ("KL", "objective/kl", ".3f", "to the initial policy, nats per reply"),
    ("entropy", "watch/entropy_share", ".0%", "over that of the first rollout"),
    ("tokens", "reply_tokens", ".1f", "mean length of replies"),
    ("cut off", "truncated", ".0%", "replies at ppo.max_reply_tokens"),
    ("repeats", "watch/repeated_ngrams", ".0%", "4-grams that their reply has said before"),
    ("alike", "watch/duplicates", ".0%", "replies that equal another one"),
    ("clipped", "policy/clipfrac_avg", ".0%", "tokens whose gradient was clipped away"),
    ("watcher", "watch/score_watcher", ".3f", "mean score by the watcher"),
    ("gap", "watch/twin_gap", ".3f", "the training PM's gain since the start less the watcher's"),
    ("logp helpful", "watch/logp_accuracy_helpful", ".3f", "held-out comparisons ordered rightly by the policy"),
    ("logp harmless", "watch/logp_accuracy_harmless", ".3f", "the same, harmless"),
    ("wires", "watch/wires_beyond", ".0f", "tripwires beyond their bound now"),
)
LEGEND_WIDTH = 120


class Table:
    """Turns lines into rows as they come, under a legend; columns are those of the first line."""

    def __init__(self) -> None:
        self._columns: list[tuple[str, str, str, str]] = []
        self._last_step = 0

    def rows(self, lines: list[MetricsLine]) -> Iterator[str]:
        """What is new among the run's lines. A run that was killed goes on at an earlier step, and says so."""
        if lines and lines[-1]["step"] < self._last_step:
            self._last_step = lines[-1]["step"]
            yield f"went on after step {self._last_step}"
        for line in lines:
            if line["step"] <= self._last_step:
                continue
            if not self._columns:
                self._columns = [column for column in COLUMNS if column[1] in line]
                legend = "; ".join(f"{title}: {meaning}" for title, _, _, meaning in self._columns)
                yield from textwrap.wrap(legend, LEGEND_WIDTH)
                yield "  ".join(f"{title:>{_width(title)}}" for title, *_ in self._columns)
            self._last_step = line["step"]
            yield "  ".join(
                f"{number(_measured(line, key), form, missing=''):>{_width(title)}}"
                for title, key, form, _ in self._columns
            ).rstrip()
            for outcome in ("stopped", "recovered"):
                if line.get(outcome):
                    yield f"{outcome}: {line[outcome]}"


def course(lines: list[MetricsLine]) -> list[dict[str, str]]:
    """The lines as rows of a table by the titles of its columns; of a run that went on earlier, the later ones."""
    columns = [column for column in COLUMNS if lines and column[1] in lines[0]]
    by_step = {line["step"]: line for line in lines}
    return [
        {title: number(_measured(by_step[step], key), form, missing="") for title, key, form, _ in columns}
        for step in sorted(by_step)
    ]


def _measured(line: MetricsLine, key: str) -> float | None:
    value = line.get(key)
    return value if isinstance(value, int | float) else None


def _width(title: str) -> int:
    return max(len(title), 6)
