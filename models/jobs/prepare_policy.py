"""Job: make an initial policy out of any decoder folder in Hugging Face format (Llama, Qwen2, GPT-NeoX, ...).

    python -m models.jobs.prepare_policy --spec spec.json --out DIR
    {"job": "prepare_policy", "inputs": {"source": "/models/Qwen2.5-0.5B-Instruct"}, "settings": {}}

The result has float32 safetensors, a pad token, a chat template, an end-of-turn id and an end-of-context id.
What the source lacks is added and named in results.json; what it has stays as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
)

from models.chat.format import ChatFormat, ChatFormatError
from models.chat.tokenizer import END, ROLES, complete_tokenizer, write_chat_files
from models.initial_policy.preflight import PreflightError, check_computing, check_endings, check_format
from models.initial_policy.results import PreparedResults
from models.model_folders.loading import embedding_table, load_causal_lm
from models.model_folders.saving import model_card, save_model
from models.model_folders.scalar_head import NoScalarHeadError, scorer_class
from models.model_folders.text_part import NoTextPartError, is_composite, load_text_part, text_config
from models.runtime.job import Job, JobError, main
from models.runtime.results import part_to_json, result_to_json
from models.runtime.settings import settings_from

# What a fresh control token means to a model that has never seen it: its embedding starts as the mean of
# these words'. The pad and score tokens start as the mean of the whole vocabulary.
_MEANINGS = dict(zip((*ROLES, END), ("\n\nSystem:", "\n\nHuman:", "\n\nAssistant:", "\n\n"), strict=True))

CARD = """The fixed start of every cycle: PPO begins here, its frozen copy is the KL reference, and preference
models start from its trunk. Prepared from a published model; its weights are unchanged apart from rows for
added
tokens."""


@dataclass
class PreparePolicySettings:
    """Nothing to set: what the source has is kept."""


def run(job: Job) -> None:
    """Prepare the source folder and publish it as an initial policy."""
    settings_from(PreparePolicySettings, job.settings)
    source = job.input("source")
    check_architecture(source)
    tokenizer = _load_tokenizer(source)
    had_template = tokenizer.chat_template is not None
    try:
        added = complete_tokenizer(tokenizer)
    except ChatFormatError as error:
        raise JobError(f"{source}: {error}") from error
    model, whole = _load(source)
    rows_before = embedding_table(model).shape[0]
    initialise_new_rows(model, tokenizer, added)
    written = job.out / "chat"
    try:
        chat = write_chat_files(tokenizer, written, _stop_ids(source, tokenizer))
        check_chat(chat, model)
        doubts = [*check_format(chat, tokenizer), *check_computing(model, chat), *check_endings(model, chat)]
    except (ChatFormatError, PreflightError) as error:
        raise JobError(f"{source}: {error}") from error
    for doubt in doubts:
        print(f"doubt: {doubt}", flush=True)
    results = PreparedResults(
        added_tokens=tuple(added),
        added_template=not had_template,
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=len(tokenizer),
        embedding_rows_before=rows_before,
        embedding_rows=embedding_table(model).shape[0],
        roles_are_control_tokens=chat.roles_are_control_tokens,
        text_part_of=whole,
        stop_tokens=_named(tokenizer, chat.stop_ids) if len(chat.stop_ids) > 1 else None,
        doubts=tuple(doubts) or None,
    )

    def write(folder: Path) -> None:
        # A tokenizer writes more files than a chat format reads.
        shutil.copytree(written, folder, dirs_exist_ok=True)
        facts = part_to_json(results) | token_names(tokenizer, chat)
        # A reply that ends or does not may hang on rounding, and the card is part of the digest.
        facts.pop("doubts", None)
        save_model(model, folder, chat, model_card("Initial policy", CARD, facts, tags=("initial-policy",)))

    job.publish(write, result_to_json(results))


def check_architecture(source: Path) -> None:
    """Raise JobError unless there is a policy in this model, and a trunk to give a scalar head."""
    if not (source / "config.json").exists():
        raise JobError(f"{source} has no config.json; expected a model folder in Hugging Face format.")
    try:
        config = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"transformers can't read {source}/config.json: {str(error).splitlines()[0]}") from error
    text = text_config(config)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise JobError(f"{source} is a '{config.model_type}', for which transformers has no language model.")
    try:
        scorer_class(text)
    except NoScalarHeadError as error:
        raise JobError(f"{source} can be no preference model: {error}") from error
    if not any(source.glob("*.safetensors")) and not any(source.glob("pytorch_model*.bin")):
        raise JobError(f"{source} has no weights (*.safetensors). Download the folder completely.")


def _load(source: Path) -> tuple[Any, str | None]:
    """The language model of a folder, and the class of the whole where that does more than read and write text."""
    config = AutoConfig.from_pretrained(str(source))
    if not is_composite(config):
        return load_causal_lm(source), None
    try:
        return load_text_part(str(source)), (config.architectures or [type(config).__name__])[0]
    except NoTextPartError as error:
        raise JobError(f"{source}: {error}") from error


def _stop_ids(source: Path, tokenizer: Any) -> set[int]:
    """All ids at which its publisher ends a reply, or a text."""
    stated = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if (source / name).is_file():
            found = json.loads((source / name).read_text(encoding="utf-8")).get("eos_token_id")
            stated += found if isinstance(found, list) else [found]
    return {index for index in stated if isinstance(index, int) and 0 <= index < len(tokenizer)}


def _load_tokenizer(source: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"Can't load the tokenizer of {source}: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise JobError(f"{source} has no tokenizer.json. Convert it with transformers' AutoTokenizer and save it.")
    return tokenizer


def initialise_new_rows(model: PreTrainedModel, tokenizer: Any, added: list[str]) -> None:
    """Make room for added tokens in the embeddings and start their rows from what they mean.

    Raises:
        JobError: the tokenizer knew more ids than the model has embeddings, before anything was added.
    """
    num_old, rows = len(tokenizer) - len(added), embedding_table(model).shape[0]
    if num_old > rows:
        raise JobError(f"The tokenizer has {num_old} ids and the model {rows} embeddings; they don't belong together.")
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = [embedding_table(model)]
    output: Any = model.get_output_embeddings()
    if output.weight is not tables[0]:  # not tied
        tables.append(output.weight)
    with torch.no_grad():
        for table in tables:
            mean = table[:num_old].mean(dim=0)
            for token in added:
                words = tokenizer(_MEANINGS.get(token, ""), add_special_tokens=False).input_ids
                index = tokenizer.convert_tokens_to_ids(token)
                table[index] = table[words].mean(dim=0) if words else mean


def check_chat(chat: ChatFormat, model: PreTrainedModel) -> None:
    """Raise JobError unless a dialogue can be encoded and the model gives finite logits for it."""
    ids = chat.encode([{"role": "user", "content": "Hello."}], reply=True) + chat.encode_reply("Hi.")
    with torch.no_grad():
        logits = model.forward(input_ids=torch.tensor([ids])).logits
    if not bool(torch.isfinite(logits).all()):
        raise JobError("The model's logits are not finite: its weights are damaged. Download it again.")


def _named(tokenizer: Any, ids: Collection[int]) -> tuple[str, ...]:
    return tuple(tokenizer.convert_ids_to_tokens(sorted(ids)))


def token_names(tokenizer: Any, chat: ChatFormat) -> dict[str, str]:
    """The control tokens of a chat format, for the model card."""
    names = {"end of turn": chat.eos_id, "pad": chat.pad_id, "end of context": chat.score_id}
    return {name: f"`{tokenizer.convert_ids_to_tokens(index)}`" for name, index in names.items()}


if __name__ == "__main__":
    main("prepare_policy", run)
