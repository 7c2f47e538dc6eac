"""What a policy says to one fixed prompt, and how likely: written when it is saved, compared when it is served.

A digest proves that the files are whole. This proves that what was made of them, on another machine and by other
code, is still the same policy: tokenizer, template, weights and the sampler's forward pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.chat.format import ChatFormat, Message
from models.sampling.engine import DecodeEngine, SamplingParams

FILE = "fingerprint.json"  # its name of old, which digests cover
MESSAGES: list[Message] = [{"role": "user", "content": "Name three colours, and say why you like one of them."}]
TOKENS = 16

# The file is part of the artifact, whose bytes must not depend on how a processor rounds: coarse enough that a
# difference of 1e-6 changes it once in ten thousand artifacts.
_DECIMALS = 1

# Log-probs in float32 differ by some 1e-5 between batch sizes and by some 1e-4 between processors; weights that were
# exchanged, a lost layer or another template differ by whole nats.
TOLERANCE_NATS = 0.05 + 0.01
"""Half a step of the rounding, and what processors differ by."""


class ProbeReplyMismatch(Exception):
    """A policy does not say what it said when it was saved."""


def write_probe_reply(model: Any, chat: ChatFormat, folder: Path) -> None:
    """Write the likeliest reply to the fixed prompt, with its log-probs, beside the weights.

    A model whose context has no room for it gets none.
    """
    engine = DecodeEngine(model, chat.stop_ids, max_slots=1)
    prompt = chat.encode(MESSAGES, reply=True)
    if len(prompt) + TOKENS > engine.max_context:
        return
    completion = engine.generate([prompt], SamplingParams(TOKENS, temperature=0.0))[0]
    reply = {
        "messages": MESSAGES,
        "prompt_ids": prompt,
        "ids": completion.ids,
        "logprobs": [round(value, _DECIMALS) for value in completion.logprobs],
    }
    (folder / FILE).write_text(json.dumps(reply, indent=1) + "\n", encoding="utf-8")


def check_probe_reply(engine: DecodeEngine, chat: ChatFormat, folder: Path, rounding_nats: float = 0.0) -> bool:
    """Whether the engine, which must be idle, was seen to say what the folder's probe reply has.

    False where the folder has none, or the engine's context no room for it.

    Where two tokens are equally likely within the tolerance the reply may go another way; what follows is not compared.

    Args:
        rounding_nats: how far log-probs of this engine may lie from those of float32 by its number format.

    Raises:
        ProbeReplyMismatch: the prompt has other ids, or a token is more or less likely than it was.
    """
    path = folder / FILE
    if not path.exists():
        return False
    saved = json.loads(path.read_text(encoding="utf-8"))
    prompt = chat.encode(saved["messages"], reply=True)
    if prompt != saved["prompt_ids"]:
        raise ProbeReplyMismatch("the fixed prompt has other ids than when it was saved (tokenizer or template)")
    if len(prompt) + len(saved["ids"]) > engine.max_context:
        return False
    params = SamplingParams(len(saved["ids"]), temperature=0.0)
    completion = engine.generate([prompt], params)[0]
    for place, (then, now) in enumerate(zip(saved["logprobs"], completion.logprobs, strict=False)):
        if not abs(then - now) <= TOLERANCE_NATS + rounding_nats:
            raise ProbeReplyMismatch(
                f"token {place} of the fixed reply has log-prob {now:.4f}; when the policy was saved it was {then:.4f}"
            )
        if saved["ids"][place] != completion.ids[place]:
            break
    return True
