"""Tiny real policies, and what the tests say to a running policy server."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from db import tables as t
from models.chat.format import ChatFormat, Message
from models.jobs import prepare_policy
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job
from models.sampling.engine import DecodeEngine, SamplingParams
from orchestrator.store.artifacts import ArtifactStore
from tests.running import deploy

CONTEXT = 512
ADMIN_TOKEN = "admin-secret"
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def write_policy(folder: Path, seed: int) -> Path:
    """A prepared policy with random weights: byte-level tokenizer of 320 entries, hidden 32, two layers."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello there, how are you today? I am fine, thank you. " * 3], trainer)
    source = folder / "source"
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(source)
    prepare_policy.run(Job({"job": "prepare_policy", "inputs": {"source": str(source)}}, folder))
    return folder / "result"


@dataclass(frozen=True)
class Policies:
    """An artifact store with tiny policies of different weights."""

    store: ArtifactStore
    cache: Path
    digests: tuple[str, ...]

    def completion(self, digest: str, messages: list[Message], params: SamplingParams) -> tuple[str, int]:
        """What the policy says, by the decode engine alone: the text, and the number of ids."""
        chat, engine = _loaded(self.store.fetch(digest))
        completion = engine.generate([chat.encode(messages, reply=True)], params)[0]
        return chat.decode(completion.ids), len(completion.ids)


@cache
def _loaded(folder: Path) -> tuple[ChatFormat, DecodeEngine]:
    chat = ChatFormat.load(folder)
    return chat, DecodeEngine(load_causal_lm(folder), chat.eos_id)


def put_live(database: Callable[[], Session], digest: str) -> None:
    """Write a deployment of the policy."""
    with database() as session, session.begin():
        artifact = session.scalars(select(t.Artifact).where(t.Artifact.digest == digest)).one()
        deploy(session, artifact)


@dataclass
class Served:
    """A running policy server."""

    url: str
    app: FastAPI
    client: httpx.Client

    def admin(self, action: str, digest: str) -> httpx.Response:
        """An admin call with the right token."""
        return self.client.post(f"/admin/{action}", json={"digest": digest}, headers={"X-Admin-Token": ADMIN_TOKEN})

    def refresh(self) -> httpx.Response:
        """Let the server ask the database at once."""
        return self.client.post("/admin/refresh", headers={"X-Admin-Token": ADMIN_TOKEN})

    def chat(self, model: str = "policy-live", content: str = "hello", **fields: Any) -> httpx.Response:
        """A chat completion with one message; 12 tokens where nothing else is said."""
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 12, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def health(self) -> dict[str, Any]:
        """What the server says about itself."""
        answer: dict[str, Any] = self.client.get("/health").json()
        return answer

    def wait_for(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first health answer for which the condition holds; fails after 20 s."""
        deadline = time.monotonic() + 20
        while not holds(health := self.health()):
            assert time.monotonic() < deadline, health
            time.sleep(0.02)
        return health


Serve = Callable[..., AbstractContextManager[Served]]


def code_of(response: httpx.Response) -> tuple[int, str]:
    """Status and error code of a refusal."""
    return response.status_code, response.json()["error"]["code"]
