"""Fits an out-of-distribution detector: which prompts fit it, which choose layer and threshold, which judge it.

The three parts share no opening message. `models/jobs/fit_ood_detector.py` runs this, `models/detectors/detector.py`
has the detector.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.chat.format import ChatFormat, Message
from models.detectors.detector import hidden_states, score_states
from models.detectors.results import Beyond, DetectorResults, Examples, LayerChosenBy, OtherPrompts
from models.detectors.scores import auroc, fit_exposure, fit_gaussian
from models.detectors.settings import OodSettings
from models.statistics.intervals import wilson

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

_PUNCTUATION = re.compile(r"[^\w\s]|_")

Dialogue = Sequence[Message]


@dataclass(frozen=True)
class Fitted:
    """A detector without its model, and what was measured while it was fitted."""

    layer: int
    statistics: Mapping[str, Tensor]
    threshold: float
    results: DetectorResults


def opening(dialogue: Dialogue) -> str:
    """The first user message in lower case, without punctuation: prompts that share it are in the same part."""
    text = next((message["content"] for message in dialogue if message["role"] == "user"), "")
    words = " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())
    return words or text.strip()


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

    Prompts of home that open like an example, and others that open like one of home, are left out.

    Raises:
        ValueError: too few prompts, a layer that the model lacks, or no examples where they are needed.
    """
    num_layers = model.config.num_hidden_layers
    if settings.layer is not None and not 0 <= settings.layer <= num_layers:
        raise ValueError(f"layer is {settings.layer}; the model has 0 (embeddings) to {num_layers}")
    bad = {opening(dialogue) for dialogue in examples}
    kept = [dialogue for dialogue in home if opening(dialogue) not in bad]
    drawn = sorted(kept, key=lambda dialogue: _draw(seed, dialogue))[: settings.max_prompts]
    parts = [[drawn[index] for index in part] for part in split_by_opening(drawn, seed)]
    known = {opening(dialogue) for dialogue in drawn}
    judged = [dialogue for dialogue in others if opening(dialogue) not in known | bad]
    judged = sorted(judged, key=lambda dialogue: _draw(seed, dialogue))[: settings.max_prompts]

    chosen_by: LayerChosenBy
    if settings.layer is not None:
        layers, chosen_by = [settings.layer], "setting"
    elif len(examples) >= MIN_EXAMPLES_TO_CHOOSE:
        layers, chosen_by = candidate_layers(num_layers), "validation"
    else:
        layers, chosen_by = [layer_by_rule(num_layers)], "rule"
    groups = [*parts, list(examples), judged]
    sequences = [[chat.encode(list(dialogue), reply=True) for dialogue in group] for group in groups]
    states = hidden_states(model, chat.pad_id, [ids for group in sequences for ids in group], layers)
    sizes = [len(group) for group in groups]
    fit, validation, test, example, other = (
        dict(zip(layers, by_layer, strict=True))
        for by_layer in zip(*(layer.split(sizes) for layer in states), strict=True)
    )

    told: dict[int, float | None] = {}
    if examples:
        told = {layer: validation_auroc(settings, fit[layer], validation[layer], example[layer]) for layer in layers}
    known_scores = {layer: value for layer, value in told.items() if value is not None}
    if len(layers) == 1:
        layer = layers[0]
    elif known_scores:
        # Of equals the deepest.
        layer = max(known_scores, key=lambda candidate: (known_scores[candidate], candidate))
    else:
        layer, chosen_by = layer_by_rule(num_layers), "rule"
    statistics = fit_statistics(settings, fit[layer], example[layer] if examples else None)

    def score(vectors: Tensor) -> Tensor:
        return score_states(settings.detector, statistics, vectors)

    # "higher": one of the scores, so that the share holds for few prompts too.
    threshold = float(torch.quantile(score(validation[layer]), settings.quantile, interpolation="higher"))
    lengths = [torch.tensor([float(len(ids)) for ids in group]) for group in sequences]
    test_scores = score(test[layer])
    of_examples, of_others = None, None
    if examples:
        of_examples = Examples(
            auroc_by_layer={str(key): value for key, value in told.items()},
            length_auroc=auroc(lengths[1], lengths[3]),
        )
    if judged:
        scores = score(other[layer])
        of_others = OtherPrompts(
            **vars(_beyond(scores, threshold)),
            auroc=auroc(test_scores, scores),
            length_auroc=auroc(lengths[2], lengths[4]),
        )
    results = DetectorResults(
        kind=settings.detector,
        layer=layer,
        layer_chosen_by=chosen_by,
        threshold=threshold,
        num_fit=sizes[0],
        num_validation=sizes[1],
        num_examples=sizes[3],
        left_out=len(home) - len(kept),
        false_alarms=_beyond(test_scores, threshold),
        examples=of_examples,
        others=of_others,
        shrinkage=None if settings.detector == "exposure" else fit_gaussian(fit[layer]).shrinkage,
    )
    return Fitted(layer, statistics, threshold, results)


def _draw(seed: int, dialogue: Dialogue) -> bytes:
    text = "\0".join(f"{message['role']}\0{message['content']}" for message in dialogue)
    return hashlib.sha256(f"ood/{seed}/{text}".encode("utf-8", "replace")).digest()


def _beyond(scores: Tensor, threshold: float) -> Beyond:
    count, n = int((scores > threshold).sum()), len(scores)
    return Beyond(n=n, beyond=count, share=count / n, ci=wilson(count, n))
