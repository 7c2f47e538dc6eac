"""Fits an out-of-distribution detector: which prompts fit it, which choose layer and threshold, which judge it.

The three parts share no opening message. `models/jobs/fit_ood_detector.py` runs this, `models/detectors/detector.py`
has the detector.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from models.chat.format import ChatFormat, Message, TemplateRefusal
from models.chat.openings import opening
from models.chat.refusals import Refusals
from models.detectors.detector import hidden_states, score_states
from models.detectors.results import Beyond, DetectorResults, Examples, LayerChosenBy, OtherPrompts
from models.detectors.scores import auroc, fit_exposure, fit_gaussian
from models.detectors.settings import OodSettings
from models.statistics.intervals import clustered, share_interval

# Shares of the openings that fit the detector, and that choose its layer and threshold; the rest judges it.
FIT_SHARE, VALIDATION_SHARE = 0.7, 0.15
# Below this many layers, the paper read the last one; beyond it, the middle one.
FEW_LAYERS = 6
# Layers that a choice looks at, spread evenly: hidden states of all layers of a large model would not fit in memory.
MAX_CANDIDATES = 8
FOLDS = 5
# Fewer examples choose no layer: by ten the choice was worse than the rule, by a hundred as good
# (docs/log/detectors.md, "Detectors of far requests").
MIN_EXAMPLES_TO_CHOOSE = 30

Dialogue = Sequence[Message]


@dataclass(frozen=True)
class Fitted:
    """A detector without its model, and what was measured while it was fitted."""

    layer: int
    statistics: Mapping[str, Tensor]
    threshold: float
    results: DetectorResults


def split_by_opening(dialogues: Sequence[Dialogue], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Indices of the dialogues that fit, validate and test; every opening is in one of the three parts.

    The order of the dialogues plays no part.

    Raises:
        ValueError: fewer than eight different openings.
    """
    keys = {opening(dialogue) for dialogue in dialogues}
    if len(keys) < 8:
        raise ValueError(f"{len(keys)} different openings; a detector needs at least 8, and some hundreds to be of use")
    ordered = sorted(keys, key=lambda key: hashlib.sha256(f"ood/{seed}/{key}".encode("utf-8", "replace")).digest())
    first, second = (math.floor(len(keys) * share) for share in (FIT_SHARE, FIT_SHARE + VALIDATION_SHARE))
    place = {key: 0 if rank < first else 1 if rank < second else 2 for rank, key in enumerate(ordered)}
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, dialogue in enumerate(dialogues):
        parts[place[opening(dialogue)]].append(index)
    return parts


def candidate_layers(num_layers: int) -> list[int]:
    """Layers that a choice looks at, from the first to the last; the embeddings know no order of words."""
    if num_layers <= MAX_CANDIDATES:
        return list(range(1, num_layers + 1))
    return [round((place + 1) * num_layers / MAX_CANDIDATES) for place in range(MAX_CANDIDATES)]


def layer_by_rule(num_layers: int) -> int:
    """The layer that the paper found to do well for models of this depth [93]."""
    return num_layers if num_layers <= FEW_LAYERS else num_layers // 2


def fit_statistics(settings: OodSettings, home: Tensor, examples: Tensor | None) -> dict[str, Tensor]:
    """What the detector keeps of N x D hidden states of home and, for exposure, of M x D of the examples."""
    if settings.detector == "exposure":
        if examples is None:
            raise ValueError("the exposure detector needs examples of harm; give some, or take another detector")
        weight, bias = fit_exposure(home, examples, settings.l2)
        return {"weight": weight, "bias": bias}
    gaussian = fit_gaussian(home)
    return {"mean": gaussian.mean, "cholesky": gaussian.cholesky}


def validation_auroc(settings: OodSettings, home: Tensor, validation: Tensor, examples: Tensor) -> float | None:
    """How well a layer tells the examples from home that did not fit it; None where one example can't say.

    The exposure detector, which is fitted on examples, is asked about those that were left out, in folds.
    """
    if settings.detector != "exposure":
        statistics = fit_statistics(settings, home, None)
        far = score_states(settings.detector, statistics, examples)
        return auroc(score_states(settings.detector, statistics, validation), far)
    folds = min(FOLDS, len(examples))
    if folds < 2:
        return None
    numbers = []
    for fold in range(folds):
        left_out = torch.arange(len(examples), device=examples.device) % folds == fold
        statistics = fit_statistics(settings, home, examples[~left_out])
        far = score_states("exposure", statistics, examples[left_out])
        numbers.append((auroc(score_states("exposure", statistics, validation), far), int(left_out.sum())))
    return sum(value * count for value, count in numbers) / len(examples)


def fit_detector(
    model: Any,
    chat: ChatFormat,
    home: Sequence[Dialogue],
    settings: OodSettings,
    *,
    examples: Sequence[Dialogue] = (),
    others: Sequence[Dialogue] = (),
    seed: int = 0,
) -> Fitted:
    """A detector of prompts unlike `home`; `examples` are prompts that it should find, `others` are only judged.

    Prompts of home that open like an example, and others that open like one of home, are left out; so are prompts that
    the chat template refuses, which are counted.

    Raises:
        ValueError: too few prompts, a layer that the model lacks, or no examples where they are needed.
    """
    refusals = Refusals()
    home, examples, others = (_taken(chat, group, refusals) for group in (home, examples, others))
    candidates, chosen_by = _candidates(settings, len(examples), model.config.num_hidden_layers)
    drawn = _draw_prompts(home, examples, others, settings, seed)
    read = _read(model, chat, drawn, candidates)
    by_layer = _told_apart(settings, read, candidates) if examples else {}
    layer, chosen_by = _choose_layer(by_layer, candidates, chosen_by, model.config.num_hidden_layers)
    statistics = fit_statistics(settings, read.fit[layer], read.examples[layer] if examples else None)
    # "higher": one of the scores, so that the share holds for few prompts too.
    validation = score_states(settings.detector, statistics, read.validation[layer])
    threshold = float(torch.quantile(validation, settings.quantile, interpolation="higher"))
    results = DetectorResults(
        kind=settings.detector,
        layer=layer,
        layer_chosen_by=chosen_by,
        threshold=threshold,
        num_fit=len(drawn.fit),
        num_validation=len(drawn.validation),
        num_examples=len(drawn.examples),
        left_out=drawn.left_out,
        refused=refusals.found(),
        shrinkage=None if settings.detector == "exposure" else fit_gaussian(read.fit[layer]).shrinkage,
        **_judged(settings, statistics, threshold, drawn, read, layer, by_layer),
    )
    return Fitted(layer, statistics, threshold, results)


def _taken(chat: ChatFormat, dialogues: Sequence[Dialogue], refusals: Refusals) -> list[Dialogue]:
    """The dialogues that the chat template takes."""
    taken = []
    for dialogue in dialogues:
        try:
            chat.encode(list(dialogue), reply=True)
        except TemplateRefusal as refusal:
            refusals.add(refusal.reason)
        else:
            taken.append(dialogue)
    return taken


@dataclass(frozen=True)
class _Drawn:
    """The prompts of a fit: three parts of home that share no opening, the examples, and the others."""

    fit: Sequence[Dialogue]
    validation: Sequence[Dialogue]
    test: Sequence[Dialogue]
    examples: Sequence[Dialogue]
    others: Sequence[Dialogue]
    left_out: int
    """Prompts of home that open like an example."""

    @property
    def groups(self) -> list[Sequence[Dialogue]]:
        return [self.fit, self.validation, self.test, self.examples, self.others]


@dataclass(frozen=True)
class _Read:
    """Hidden states [prompts, D] of each group by layer, and the lengths of their prompts in tokens."""

    fit: Mapping[int, Tensor]
    validation: Mapping[int, Tensor]
    test: Mapping[int, Tensor]
    examples: Mapping[int, Tensor]
    others: Mapping[int, Tensor]
    lengths: Sequence[Tensor]


def _draw_prompts(
    home: Sequence[Dialogue], examples: Sequence[Dialogue], others: Sequence[Dialogue], settings: OodSettings, seed: int
) -> _Drawn:
    bad = {opening(dialogue) for dialogue in examples}
    kept = [dialogue for dialogue in home if opening(dialogue) not in bad]
    drawn = sorted(kept, key=lambda dialogue: _draw(seed, dialogue))[: settings.max_prompts]
    fit, validation, test = ([drawn[index] for index in part] for part in split_by_opening(drawn, seed))
    known = {opening(dialogue) for dialogue in drawn}
    judged = [dialogue for dialogue in others if opening(dialogue) not in known | bad]
    judged = sorted(judged, key=lambda dialogue: _draw(seed, dialogue))[: settings.max_prompts]
    return _Drawn(fit, validation, test, list(examples), judged, len(home) - len(kept))


def _candidates(settings: OodSettings, num_examples: int, num_layers: int) -> tuple[list[int], LayerChosenBy]:
    """The layers that are looked at, and what chooses among them."""
    if settings.layer is not None:
        if not 0 <= settings.layer <= num_layers:
            raise ValueError(f"layer is {settings.layer}; the model has 0 (embeddings) to {num_layers}")
        return [settings.layer], "setting"
    if num_examples >= MIN_EXAMPLES_TO_CHOOSE:
        return candidate_layers(num_layers), "validation"
    return [layer_by_rule(num_layers)], "rule"


def _read(model: Any, chat: ChatFormat, drawn: _Drawn, layers: Sequence[int]) -> _Read:
    sequences = [[chat.encode(list(dialogue), reply=True) for dialogue in group] for group in drawn.groups]
    states = hidden_states(model, chat.pad_id, [ids for group in sequences for ids in group], layers)
    sizes = [len(group) for group in sequences]
    groups = zip(*(layer.split(sizes) for layer in states), strict=True)
    fit, validation, test, examples, others = (dict(zip(layers, by_layer, strict=True)) for by_layer in groups)
    lengths = [torch.tensor([float(len(ids)) for ids in group]) for group in sequences]
    return _Read(fit, validation, test, examples, others, lengths)


def _told_apart(settings: OodSettings, read: _Read, layers: Sequence[int]) -> dict[int, float | None]:
    """By layer how well it tells the examples from home."""
    return {
        layer: validation_auroc(settings, read.fit[layer], read.validation[layer], read.examples[layer])
        for layer in layers
    }


def _choose_layer(
    by_layer: Mapping[int, float | None], candidates: Sequence[int], chosen_by: LayerChosenBy, num_layers: int
) -> tuple[int, LayerChosenBy]:
    known = {layer: value for layer, value in by_layer.items() if value is not None}
    if len(candidates) == 1:
        return candidates[0], chosen_by
    if known:
        # Of equals the deepest.
        return max(known, key=lambda layer: (known[layer], layer)), chosen_by
    return layer_by_rule(num_layers), "rule"


class Judged(TypedDict):
    """What the detector does with prompts that it never saw."""

    false_alarms: Beyond
    examples: Examples | None
    others: OtherPrompts | None


def _judged(
    settings: OodSettings,
    statistics: Mapping[str, Tensor],
    threshold: float,
    drawn: _Drawn,
    read: _Read,
    layer: int,
    by_layer: Mapping[int, float | None],
) -> Judged:
    """The fields of the results that say what the detector does with prompts that it never saw."""
    _, _, test_lengths, example_lengths, other_lengths = read.lengths
    test = score_states(settings.detector, statistics, read.test[layer])
    examples, others = None, None
    if by_layer:
        examples = Examples(
            auroc_by_layer={str(key): value for key, value in by_layer.items()},
            length_auroc=auroc(read.lengths[1], example_lengths),
        )
    if len(other_lengths):
        scores = score_states(settings.detector, statistics, read.others[layer])
        others = OtherPrompts(
            **vars(_beyond(scores, threshold, drawn.others)),
            auroc=auroc(test, scores),
            length_auroc=auroc(test_lengths, other_lengths),
        )
    return {"false_alarms": _beyond(test, threshold, drawn.test), "examples": examples, "others": others}


def _draw(seed: int, dialogue: Dialogue) -> bytes:
    text = "\0".join(f"{message['role']}\0{message['content']}" for message in dialogue)
    return hashlib.sha256(f"ood/{seed}/{text}".encode("utf-8", "replace")).digest()


def _beyond(scores: Tensor, threshold: float, prompts: Sequence[Dialogue]) -> Beyond:
    """The share of the scores above the threshold; its interval heeds that the turns of a dialogue are alike."""
    outcomes = (scores > threshold).double().tolist()
    effect, num_dialogues = clustered(outcomes, [opening(prompt) for prompt in prompts])
    count, n = int(sum(outcomes)), len(outcomes)
    ci = share_interval(count / n, n, design_effect=effect, num_clusters=num_dialogues)
    return Beyond(n=n, beyond=count, share=count / n, ci=ci)
