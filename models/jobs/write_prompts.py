"""Job: let a model write more prompts after the example of people's, and join them to a prompt set.

Inputs: `policy` (a prepared policy that writes) and `prompts` (a prompt set). About ten opening messages of people,
each in its turn of the chat template, stand before the opening of one more turn of the user's, which the model goes on
with [37]. What is unfinished, a repeat, a copy of an example or an opening of a held-out dialogue is left out and
counted. The result is a prompt set: the given one with the new prompts in its training part; each of them names the
examples it was written after (`written_from`), so that a person who is forgotten can be forgotten here too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from models.backbone.context import context_of
from models.chat.format import ChatFormat, Message, TemplateRefusal
from models.chat.prompt_writing import Sieve, Verdict, message_key
from models.chat.refusals import Refusals
from models.initial_policy.results import WrittenPromptsResults
from models.model_folders.loading import load_causal_lm
from models.policy.prompts import KINDS, Kind
from models.policy.settings import WritingSettings
from models.runtime.job import Job, JobError, main
from models.runtime.random_numbers import derive_seed, permutation
from models.runtime.results import result_to_json
from models.runtime.settings import settings_from
from models.sampling.engine import Completion, DecodeEngine, SamplingParams

NAME = "write_prompts"
_EXAMPLES, _SAMPLE = range(2)
SLOTS = 128


class PromptRecord(TypedDict):
    """A prompt of a set, one line of prompts.jsonl."""

    id: str
    kind: str
    split: str
    messages: list[Message]
    written_from: NotRequired[list[str]]
    """Of a written prompt: the keys of the examples that it was written after."""


@dataclass(frozen=True)
class Example:
    """A person's opening message."""

    text: str
    key: str
    ids: tuple[int, ...]


def run(job: Job) -> None:
    """Write, sift, join and publish.

    Raises:
        JobError: the prompt set has no opening that can serve as an example, or the context holds none.
    """
    settings = settings_from(WritingSettings, job.settings)
    chat = ChatFormat.load(job.input("policy"))
    model = load_causal_lm(job.input("policy"), device=job.device)
    source = job.input("prompts")
    records: list[PromptRecord] = [
        json.loads(line) for line in (source / "prompts.jsonl").read_text("utf-8").split("\n") if line
    ]
    writer = Writer(job, settings, chat, model, records)
    written = writer.write()
    by_kind: dict[str, int] = {kind: sum(record["kind"] == kind for record in written) for kind in KINDS}
    results = WrittenPromptsResults(
        num_written=len(written),
        num_written_by_kind=by_kind,
        left_out=dict(sorted((name, count) for name, count in writer.verdicts.items() if name != "kept")),
        num_prompts=len(records) + len(written),
        refused=writer.refusals.found(),
        settings=asdict(settings),
    )

    def publish(folder: Path) -> None:
        manifest = json.loads((source / "manifest.json").read_text("utf-8"))
        shutil.copyfile(source / "prompts.jsonl", folder / "prompts.jsonl")
        with (folder / "prompts.jsonl").open("ab") as file:
            for record in written:
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        counts = manifest["counts"]
        for kind, number in by_kind.items():
            counts["train"][kind] += number
        manifest |= {
            "counts": counts,
            "num_prompts": results.num_prompts,
            "num_train": manifest["num_train"] + len(written),
            "num_written": len(written),
            "sha256": hashlib.sha256((folder / "prompts.jsonl").read_bytes()).hexdigest(),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")

    job.publish(publish, result_to_json(results))


class Writer:
    """Samples texts in rounds until enough are kept or the attempts are used up."""

    def __init__(
        self, job: Job, settings: WritingSettings, chat: ChatFormat, model: Any, records: Sequence[PromptRecord]
    ) -> None:
        self.job, self.settings, self.chat = job, settings, chat
        self.opening = user_opening(chat)
        context = context_of(model)
        self.room = context - settings.max_prompt_tokens - len(self.opening)
        self.refusals = Refusals()
        openings = {split: [_opening(r["messages"]) for r in records if r["split"] == split] for split in _SPLITS}
        self.sieve = Sieve(openings["train"], openings["held_out"], settings.min_characters)
        self.examples = {kind: self._examples_of(kind, records) for kind in KINDS}
        if not any(self.examples.values()):
            raise JobError(
                f"None of the {len(records)} prompts is a first message of at most {settings.max_prompt_tokens} tokens "
                f"that fits a context of {context}{self.refusals}; nothing to write after. "
                "Raise prompts.written_max_tokens."
            )
        self.model = model
        self.verdicts: Counter[Verdict] = Counter()

    def write(self) -> list[PromptRecord]:
        """The records of the prompts kept; kinds in the proportion of the examples."""
        total = sum(map(len, self.examples.values()))
        written: list[PromptRecord] = []
        for kind in KINDS:
            wanted = round(self.settings.num_written * len(self.examples[kind]) / total)
            written += self._write_kind(kind, wanted)
        return written

    def _write_kind(self, kind: Kind, wanted: int) -> list[PromptRecord]:
        kept: list[PromptRecord] = []
        number, limit = 0, wanted * self.settings.max_attempts
        engine = DecodeEngine(self.model, self.chat.eos_id, SLOTS)
        while len(kept) < wanted and number < limit:
            count = min(SLOTS, limit - number)
            shown = [self._shown(kind, number + i) for i in range(count)]
            prompts = [[*(i for example in examples for i in example.ids), *self.opening] for examples in shown]
            params = [
                SamplingParams(
                    self.settings.max_prompt_tokens,
                    self.settings.temperature,
                    seed=derive_seed(self.job.seed, _SAMPLE, KINDS.index(kind), number + i),
                )
                for i in range(count)
            ]
            for examples, completion in zip(shown, engine.generate(prompts, params), strict=True):
                record = self._record(kind, examples, completion)
                if record is not None and len(kept) < wanted:
                    kept.append(record)
            number += count
            self.job.progress(len(kept), wanted, f"write {kind}")
        return kept

    def _record(self, kind: str, examples: Sequence[Example], completion: Completion) -> PromptRecord | None:
        text, finished = self._text(completion)
        verdict = self.sieve.judge(text, [example.text for example in examples], finished=finished)
        self.verdicts[verdict] += 1
        if verdict != "kept":
            return None
        messages = [Message(role="user", content=text)]
        canonical = json.dumps([kind, messages], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return {
            "id": hashlib.sha256(canonical.encode()).hexdigest(),
            "kind": kind,
            "split": "train",
            "messages": messages,
            "written_from": sorted(example.key for example in examples),
        }

    def _text(self, completion: Completion) -> tuple[str, bool]:
        """What the model wrote before the first control token, and whether it came to one."""
        for place, token in enumerate(completion.ids):
            if token in self.chat.control_ids or token == self.chat.eos_id:
                return self.chat.decode(completion.ids[:place]).strip(), True
        return self.chat.decode(completion.ids).strip(), False

    def _examples_of(self, kind: Kind, records: Sequence[PromptRecord]) -> list[Example]:
        found: dict[str, Example] = {}
        for record in records:
            messages = record["messages"]
            if record["split"] != "train" or record["kind"] != kind or len(messages) != 1:
                continue
            if "written_from" in record:
                continue  # after people's examples only, never after the model's own
            try:
                ids = tuple(self.chat.encode(messages))
            except TemplateRefusal as refusal:
                self.refusals.add(refusal.reason)
                continue
            if len(ids) <= min(self.settings.max_prompt_tokens, self.room):
                found.setdefault(messages[0]["content"], Example(messages[0]["content"], message_key(messages), ids))
        return sorted(found.values(), key=lambda example: example.key)

    def _shown(self, kind: Kind, number: int) -> list[Example]:
        """Examples for one attempt: drawn without replacement, as many as fit."""
        examples = self.examples[kind]
        order = permutation(derive_seed(self.job.seed, _EXAMPLES, KINDS.index(kind), number), len(examples))
        shown: list[Example] = []
        tokens = 0
        for index in order[: self.settings.num_examples].tolist():
            tokens += len(examples[index].ids)
            if tokens > self.room:
                break
            shown.append(examples[index])
        return shown


_SPLITS = ("train", "held_out")


def user_opening(chat: ChatFormat) -> list[int]:
    """The ids with which the template opens a user's turn: what turns of different texts have in common."""
    turns = [chat.encode([{"role": "user", "content": text}]) for text in ("a", "Z", "7", "é")]
    common: list[int] = []
    for ids in zip(*turns, strict=False):
        if len(set(ids)) > 1:
            break
        common.append(ids[0])
    return common


def _opening(messages: Sequence[Message]) -> str:
    return next((message["content"] for message in messages if message["role"] == "user"), "")


if __name__ == "__main__":
    main(NAME, run)
