"""Job: store what a teacher says after the prompt, so that students can be trained on it without the teacher.

    python -m models.jobs.make_distillation_set --spec spec.json --out DIR
    {"job": "make_distillation_set", "inputs": {"teacher": "...", "prompt": "...", "text": "..."}, "settings": {}}

Inputs: `teacher` (a prepared policy), `prompt` (prompt.json: version and messages), `text` (dialogues.jsonl, as for
`models/jobs/pretrain.py`). Half of the tokens are plain text, which opens a new user turn, half are dialogues, as far
as there are both. Memory holds one shard, whatever the number of tokens.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from models.backbone.output_layer import OutputLayerUnknown, check_output_layer
from models.chat.dialogue_files import DIALOGUES_FILE
from models.chat.format import ChatFormat, ChatFormatError
from models.initial_policy.distillation import (
    HELD_OUT_FILE,
    MANIFEST_FILE,
    PROMPT_FILE,
    TOP_K,
    DistillationError,
    Manifest,
    pack_shard,
    shard_file,
)
from models.initial_policy.distillation_set import (
    Texts,
    check_room,
    groups,
    read,
    read_prompt,
    save_aside,
)
from models.initial_policy.results import DistillationSetResults
from models.initial_policy.settings import DistillationSetSettings
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job, JobError, main
from models.runtime.results import result_to_json
from models.runtime.settings import settings_from

NAME = "make_distillation_set"


def run(job: Job) -> None:
    """Let the teacher read shard by shard, going on behind the last one written, and publish the set.

    Raises:
        JobError: no text, a prompt that leaves no room, a line of the wrong shape.
    """
    settings = settings_from(DistillationSetSettings, job.settings)
    version, prompt = read_prompt(job.input("prompt"))
    try:
        chat = ChatFormat.load(job.input("teacher"))
        prompt_tokens = len(chat.encode(prompt))
        model = load_causal_lm(job.input("teacher"), device=job.device)
        check_output_layer(model, "A distillation set")
        check_room(model, prompt_tokens, settings.max_tokens)
        shards = job.out / "shards"
        shards.mkdir(exist_ok=True)
        checkpoint = job.load_checkpoint()
        done: list[int] = checkpoint[1]["sizes"] if checkpoint else []
        tokens = int(checkpoint[1]["tokens"]) if checkpoint else 0
        texts = Texts(job.input("text") / DIALOGUES_FILE, job.seed)
        for number, group in enumerate(groups(texts, chat, prompt, settings)):
            if number < len(done):
                continue
            targets = read(model, chat.pad_id, group, job.device)
            file = HELD_OUT_FILE if number == 0 else shard_file(number - 1)
            save_aside(pack_shard(group, targets), shards / file)
            done.append(len(group))
            tokens += len(targets.rest_logprob)
            job.log(number + 1, texts=len(group), tokens=tokens, rest_mass=float(targets.rest_logprob.exp().mean()))
            job.progress(min(tokens, settings.tokens), settings.tokens, "teacher")
            job.save_checkpoint(number + 1, {"sizes": done, "tokens": tokens})
    except (ChatFormatError, DistillationError, OutputLayerUnknown) as error:
        raise JobError(str(error)) from error
    if len(done) < 2:
        raise JobError(
            f"The text holds {sum(done)} usable texts, all of which are held out{texts.refusals}. Give more of it."
        )
    manifest = Manifest(
        prompt_version=version,
        prompt_tokens=prompt_tokens,
        top_k=min(TOP_K, model.config.vocab_size),
        vocab_size=chat.vocab_size,
        shards=tuple(done[1:]),
        held_out=done[0],
    )
    results = DistillationSetResults(
        **vars(manifest),
        num_tokens=tokens,
        num_texts=sum(done[1:]),
        num_plain=texts.taken["plain"],
        num_dialogues=texts.taken["dialogue"],
        refused=texts.refusals.found(),
    )

    def write(folder: Path) -> None:
        chat.copy_to(folder)
        for file in sorted(shards.iterdir()):
            os.link(file, folder / file.name)
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        (folder / PROMPT_FILE).write_bytes((job.input("prompt") / PROMPT_FILE).read_bytes())

    job.publish(write, result_to_json(results))


if __name__ == "__main__":
    main(NAME, run)
