"""Is a sign the wrong way round? What the orientation pairs and the held-out comparisons of each source say.

The paper's red-team task asks for the more harmful reply, so a label that is not turned round, or turned twice, makes
PPO follow the opposite of what people want. Pure: numbers in, sentences for the operator out.
"""

from __future__ import annotations

from models.preference.results import Accuracy, HeldOutReport, Interval, OrderedPairs
from models.statistics.intervals import share_interval

# A source at chance has an interval below one half by bad luck once in 2,000 at this confidence; a source whose labels
# are turned round lies below it as surely as the others lie above.
SOURCE_CONFIDENCE = 0.999

# Nobody chose the shipped pairs for this model, which may know another language or nothing yet; so it has to be as sure
# as a source. 9 of 40 and 2 of 20 are below one half, 10 and 3 are not; at 95 % a tenth of honest small models were
# (docs/log/preference-model.md, "Orientation pairs for everybody").
SHIPPED_CONFIDENCE = 0.999


def wrong_signs(
    held_out: HeldOutReport, orientation: OrderedPairs | None, file: str | None, *, sources: bool = True
) -> list[str]:
    """What is ordered the wrong way round, one sentence each; none where nothing is.

    `held_out` is the preference model's own report, `orientation` the result of check_preference_model on `file`, or on
    the shipped set where `file` is None. Of the orientation pairs all together are judged, and those of each question
    that the model was trained on (a helpful-only model orders harmless pairs below chance [56], and that is no
    mistake). Without `sources` those are not judged: a small model with far fewer harmless than helpful comparisons
    carries the one over to the other.
    """
    found = []
    if orientation is not None:
        parts: dict[str, Accuracy] = {"": orientation}
        for question, part in sorted(orientation.by_question.items()):
            if question in held_out.by_question:
                parts[f"{question} "] = part
        for question, part in parts.items():
            if part.accuracy is None:
                continue
            which, interval, off = f"of {file}", part.ci, ""
            if file is None:
                which = "that come with the orchestrator"
                interval = share_interval(part.accuracy, part.n, confidence=SHIPPED_CONFIDENCE)
                off = (
                    f" at {SHIPPED_CONFIDENCE:.1%} (where people don't write English, name pairs of your own as "
                    "orientation.file, or set orientation.shipped = false)"
                )
            if interval[1] < 0.5:
                found.append(
                    f"of the {part.n} {question}orientation pairs {which} the preference model orders "
                    f"{part.accuracy:.0%} rightly, interval {_interval(interval)}, below one half{off}"
                )
    for source, part in sorted(held_out.by_source.items()) if sources else ():
        if part.accuracy is None:
            continue
        interval = share_interval(
            part.accuracy,
            part.n,
            design_effect=part.design_effect,
            num_clusters=part.dialogues,
            confidence=SOURCE_CONFIDENCE,
        )
        if interval[1] < 0.5:
            found.append(
                f"of the {part.n} held-out comparisons of source {source!r} it orders {part.accuracy:.0%} "
                f"rightly, interval {_interval(interval)} at {SOURCE_CONFIDENCE:.1%}, below one half: that source "
                'contradicts the others (orientation.contradicting_source = "report" lets it pass)'
            )
    return found


def _interval(ci: Interval) -> str:
    return f"[{ci[0]:.2f}, {ci[1]:.2f}]"
