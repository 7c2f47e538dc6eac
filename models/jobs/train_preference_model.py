"""Job: train a preference model on a comparison set, from the initial policy's trunk and a fresh scalar head.

Inputs: `initial` (prepared policy) and `comparisons` (comparison set). Optional: `skills` (a comparison set mixed in),
`pmp` (a preference model whose trunk is the start), `reference` (the set over which the offset is measured), and for a
watcher `production`, the model whose twin it is. The result is a Hugging Face folder for
`AutoModelForSequenceClassification` with the held-out report in results.json and every held-out score beside it.

Settings are in models/preference/settings.py, the optimisation loop in preference_training.py.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from models.backbone.adapters import AdapterError, Lora, add_adapter, digest_of_base, lora_of, merged, save_adapter
from models.backbone.context import context_of
from models.chat.format import ChatFormat, ChatFormatError, check_same_chat
from models.chat.refusals import RefusedRecords
from models.memory.needs import config_of, needs_of_preference_model
from models.memory.room import check_room
from models.model_folders.saving import save_model
from models.preference.comparison_set import SPLITS, ComparisonRecord, ComparisonSetError, load_token_pairs
from models.preference.empty_splits import Contents, advice
from models.preference.measuring import (
    card,
    choices,
    offset_of,
    steps_of,
    ties_of,
    trained_adapter,
    trained_on,
    twin_part,
)
from models.preference.model import PreferenceModel, fresh_preference_model, scalar_head
from models.preference.order import shuffle_labels
from models.preference.pairs import PairFile, TokenPair, TokenPairs
from models.preference.report import ScoredPair, held_out_report, score_pairs
from models.preference.results import PreferenceModelResults
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.preference.twins import part_of
from models.runtime.job import Job, JobError, main
from models.runtime.results import result_to_json
from models.runtime.settings import settings_from
from models.statistics.scaling import learning_curve

NAME = "train_preference_model"


def run(job: Job) -> None:
    """Train, score the held-out comparisons, publish.

    Raises:
        JobError: a split is empty, the comparison set is not what its manifest says, or adapters are asked for that
            can't be made.
    """
    settings = settings_from(PreferenceModelSettings, job.settings)
    lora = _lora(settings)
    initial = job.input("initial")
    start = job.inputs.get("pmp", initial)
    chat = _same_chat(start, initial)
    # A text that is longer than a forward pass would take more; which there are is not known yet.
    longest = min(settings.max_tokens, settings.forward_tokens or settings.max_tokens)
    needs = functools.partial(needs_of_preference_model, config_of(start), settings, job.device.type, longest)
    check_room(job, needs, [start])
    model = fresh_preference_model(start, chat, job.seed, job.device)
    base_sha256 = None if lora is None else _train_adapter_only(model, lora, job.seed)
    max_tokens = int(min(settings.max_tokens, context_of(model)))
    splits, left_out, num_judged = _load(job, chat, max_tokens, settings)
    train, held_out = splits["train"].pairs, splits["held_out"].pairs
    if settings.shuffle_labels:
        train = shuffle_labels(train, job.seed)

    training = Training(job, settings, model, chat, train)
    train_loss = training.run()

    job.progress(training.num_steps, training.num_steps, "evaluate")
    trained = model.eval()
    if lora is not None:
        # What is judged below is what is published.
        model = merged(trained)
    preference_model = PreferenceModel(model, chat)
    preference_model.chunk_tokens = training.chunk_tokens
    scored, skills = _scored(preference_model, held_out, num_judged)
    offset, reference = offset_of(job, preference_model, max_tokens)
    results = PreferenceModelResults(
        num_train=len(train),
        num_held_out=len(scored),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained_on=trained_on(train, settings.harmless_weight),
        dropped_too_long=splits["train"].num_too_long + splits["held_out"].num_too_long,
        dropped_too_long_by_split={name: split.num_too_long for name, split in splits.items()},
        refused=_refused(splits),
        max_tokens=max_tokens,
        optimiser_steps=training.num_steps,
        train_loss=train_loss,
        learning_curve=learning_curve(steps_of(job.out / "metrics.jsonl"), len(train), settings.batch_pairs),
        held_out=held_out_report(scored),
        skills=held_out_report(skills) if skills else None,
        choices=choices(job, settings, model, max_tokens, lora),
        offset=offset,
        reference=reference,
        ties=ties_of(preference_model, train, held_out, left_out),
        lora=None if lora is None else trained_adapter(lora, trained),
        twin=twin_part(job, settings, len(train), scored),
    )

    def write(directory: Path) -> None:
        save_model(model, directory, chat, card(results, settings))
        if lora is not None and base_sha256 is not None:
            save_adapter(trained, directory, "SEQ_CLS", lora, base_sha256)
        _write_scores(directory, scored, skills)

    job.publish(write, result_to_json(results))


def _refused(splits: dict[str, TokenPairs]) -> dict[str, RefusedRecords] | None:
    """What the chat template refused, by split; None where it took everything."""
    found = {name: split.refusals.found() for name, split in splits.items()}
    return {name: refused for name, refused in found.items() if refused is not None} or None


def _same_chat(start: Path, initial: Path) -> ChatFormat:
    """The initial policy's chat format, which the start of training must share to the byte."""
    try:
        check_same_chat(start, initial, "pre-trained preference model")
    except ChatFormatError as error:
        raise JobError(str(error)) from error
    return ChatFormat.load(initial)


def _scored(
    preference_model: PreferenceModel, held_out: Sequence[TokenPair], num_judged: int
) -> tuple[list[ScoredPair], list[ScoredPair]]:
    """Scores of the held-out comparisons of raters, which come first, and of skills; ties are in no order.

    Apart, since a skill that is learned well must not hide that the raters' own comparisons are not.
    """
    judged, skills = (
        score_pairs(preference_model, [held_out[i] for i in part if held_out[i].tie is None])
        for part in (range(num_judged), range(num_judged, len(held_out)))
    )
    return judged, skills


def _write_scores(directory: Path, scored: Sequence[ScoredPair], skills: Sequence[ScoredPair]) -> None:
    for name, pairs in (("held_out", scored), ("skill", skills)):
        if pairs or name == "held_out":
            with (directory / f"{name}_scores.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(pair.as_json()) + "\n" for pair in pairs)


def _lora(settings: PreferenceModelSettings) -> Lora | None:
    try:
        return lora_of(settings)
    except AdapterError as error:
        raise JobError(str(error)) from error


def _train_adapter_only(model: Any, lora: Lora, seed: int) -> str:
    """Freeze all but an adapter and the score head; gives the digest of the frozen trunk."""
    base_sha256 = digest_of_base(model.base_model)
    try:
        add_adapter(model, lora, seed)
    except AdapterError as error:
        raise JobError(str(error)) from error
    scalar_head(model).requires_grad_(True)
    return base_sha256


def _load(
    job: Job, chat: ChatFormat, max_tokens: int, settings: PreferenceModelSettings
) -> tuple[dict[str, TokenPairs], Counter[str], int]:
    """The pairs of all comparison sets by split, how many were left out on purpose, by reason, and how many of the
    held-out ones, the first, are the comparison set's own and no skill's."""
    left_out: Counter[str] = Counter()
    dialogues: set[str | None] = set()

    def wanted(record: ComparisonRecord) -> bool:
        if len(dialogues) < 2:
            dialogues.add(record.get("split_key") or record["id"])
        if record["split"] == "held_out":
            return True
        if record.get("tie") and settings.targets == "hard":
            left_out["ties"] += 1
            return False
        if settings.twin == "off":
            return True
        split_key = record.get("split_key")
        if not split_key:
            raise ComparisonSetError(
                f"Comparison {record['id']} has no split_key, by which twin = {settings.twin!r} splits. Freeze anew."
            )
        return part_of(split_key, settings.twin) == settings.part

    # On disk, so that memory does not grow with the comparisons.
    splits = {name: TokenPairs(PairFile(job.out, TokenPair)) for name in SPLITS}

    def read(role: str) -> None:
        try:
            load_token_pairs(job.input(role), chat, max_tokens, wanted, splits)
        except ComparisonSetError as error:
            raise JobError(str(error)) from error

    read("comparisons")
    usable = {name: sum(pair.tie is None for pair in split.pairs) for name, split in splits.items()}
    for name, split in splits.items():
        if not usable[name]:
            raise JobError(
                f"The comparison set has 0 {name.replace('_', '-')} comparisons of at most {max_tokens} tokens "
                f"({split.num_too_long} are longer{split.refusals}); training needs both splits. "
                + _advice(job.input("comparisons"), splits, usable, one_dialogue=len(dialogues) == 1)
            )
    num_judged = len(splits["held_out"].pairs)
    if "skills" in job.inputs:
        read("skills")
    return splits, left_out, num_judged


def _advice(folder: Path, splits: dict[str, TokenPairs], usable: dict[str, int], *, one_dialogue: bool) -> str:
    """What to do about a comparison set that leaves a split empty, by what the set is like."""
    if any(split.num_too_long for split in splits.values()):
        return "Raise preference_model.max_tokens, or collect shorter dialogues."
    if any(split.refusals.count for split in splits.values()):
        return "Give the model's folder a chat template that takes these dialogues, or collect others."
    return advice(
        Contents(
            **usable,
            ties=sum(len(split.pairs) for split in splits.values()) - sum(usable.values()),
            left_out=json.loads((folder / "manifest.json").read_text("utf-8")).get("excluded", {}),
            one_dialogue=one_dialogue,
        )
    )


if __name__ == "__main__":
    # The fresh head is reported as a missing weight; here that is the intention.
    transformers_logging.set_verbosity_error()
    main(NAME, run)
