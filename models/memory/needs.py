"""The memory table: what each training job holds, role by role, in bytes by formula.

Weights, gradients and AdamW's two moments are float32: 4, 4 and 8 bytes a parameter. What a pass holds is counted
(`passes.py`). On a CPU everything lies in the host's memory; beside a GPU only what is marked so. Held against measured
peaks by `python -m benchmarks.memory_table` (docs/explanation/memory.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig

from models.backbone.adapters import lora_of
from models.memory.passes import Texts, Way, Weights, policy_pass, score_pass
from models.policy.rollout import CHUNK_TOKENS_CPU, CHUNK_TOKENS_GPU
from models.policy.settings import EvaluationSettings, PPOSettings
from models.preference.model import CHUNK_TOKENS_CPU as SCORED_TOKENS_CPU
from models.preference.model import CHUNK_TOKENS_GPU as SCORED_TOKENS_GPU
from models.preference.model import can_pack
from models.preference.settings import PreferenceModelSettings
from models.runtime.training_choices import HeldPrecision, LoraSettings, Precision
from models.sampling.llama import JOIN_BELOW_PARAMETERS

FLOAT = 4
MOMENTS = 8
LEARNS = FLOAT + FLOAT + MOMENTS
"""Bytes of a parameter that learns: itself, its gradient, AdamW's mean and square."""
KEPT = FLOAT + MOMENTS
"""What a checkpoint, and a way back to the last good weights, hold of it."""
LOGITS_AT_ONCE = 3
"""Copies of a sampler's logits: float32, probabilities, and what is drawn from."""


class Need(NamedTuple):
    """One line of the table."""

    what: str
    bytes: int
    on_host: bool = False
    """In the host's memory also where a GPU computes."""


@dataclass(frozen=True)
class Needs:
    """The table of one job."""

    job: str
    lines: tuple[Need, ...]
    lower: str
    """What makes it less, in words."""

    def on(self, *, host: bool) -> int:
        """Bytes in the host's memory, or on the card, where there is one."""
        return sum(line.bytes for line in self.lines if line.on_host == host)

    @property
    def together(self) -> int:
        """Bytes where one memory holds all."""
        return sum(line.bytes for line in self.lines)


def tables(reckon: Sequence[Callable[[], Needs]]) -> list[Needs]:
    """Several tables, so that one process of its own reckons them all."""
    return [each() for each in reckon]


@dataclass(frozen=True)
class Judge:
    """A preference model that scores: held whole, or as an adapter of so many bytes on a base that is there."""

    what: str
    config: Any
    adapter_bytes: int | None = None


def config_of(folder: Path | str) -> Any:
    """The configuration of the language model in a folder, without what sees or hears beside it."""
    return AutoConfig.from_pretrained(folder).get_text_config()


def judges_of(preference_model: Path, watcher: Path | None, *, shared: bool) -> list[Judge]:
    """Those of a job, by their folders; `shared` where adapters are held on one base."""
    judges = []
    for what, folder in (("preference model", preference_model), ("watcher", watcher)):
        if folder is not None:
            files = list((folder / "adapter").glob("*")) if shared else []
            size = sum(file.stat().st_size for file in files) if files else None
            judges.append(Judge(what, config_of(folder), size))
    return judges


def needs_of_preference_model(
    config: Any, settings: PreferenceModelSettings, device: str, longest: int | None = None
) -> Needs:
    """Of `train_preference_model`, whose texts have up to `longest` tokens: `max_tokens` where not given."""
    weights, lora = Weights.of(config), lora_of(settings)
    learning = weights.trunk if lora is None else weights.adapters(lora)
    by_hand = device == "cpu"
    way = Way(settings.precision, settings.recompute_activations, adapters=lora is not None, by_hand=by_hand)
    budget = settings.forward_tokens or (SCORED_TOKENS_CPU if by_hand else SCORED_TOKENS_GPU)
    packed = can_pack(config)
    texts = _pairs(budget // 2 if packed else budget, longest or settings.max_tokens, settings.batch_pairs, packed)
    lines = [
        Need("weights", FLOAT * weights.trunk),
        *([Need("adapters", FLOAT * learning)] if lora else []),
        Need("gradients", FLOAT * learning),
        Need("optimiser", MOMENTS * learning),
        Need(_activations(texts), score_pass(config, texts, way)),
    ]
    if settings.lm_coef:
        lines.append(Need("output layer of lm_coef", FLOAT * weights.embeddings))
    lines.append(Need("checkpoint being written", KEPT * learning, on_host=True))
    return Needs("train_preference_model", tuple(lines), _lower("forward_tokens, max_tokens", settings))


def needs_of_policy(
    config: Any,
    judges: Sequence[Judge],
    settings: PPOSettings,
    device: str,
    longest: int,
) -> Needs:
    """Of `train_policy`.

    Args:
        config: of the initial policy.
        judges: the preference model first, then its watcher, where there is one.
        longest: tokens of the longest prompt with its reply.
    """
    weights, lora = Weights.of(config), lora_of(settings)
    learning = weights.whole if lora is None else weights.adapters(lora)
    by_hand = device == "cpu"
    way = Way(settings.precision, settings.recompute_activations, adapters=lora is not None, by_hand=by_hand)
    critic = None if settings.advantage == "rloo" else settings.critic
    own = critic in ("separate", "preference_model")
    trunk_config = judges[0].config if critic == "preference_model" else config
    trunk = Weights.of(trunk_config) if own else None
    values = 0 if trunk is None else (trunk.trunk if lora is None else trunk.adapters(lora))
    texts = _rows(settings.forward_tokens, by_hand, longest, settings.max_reply_tokens, settings.minibatch_replies)
    one_pass = policy_pass(
        config,
        texts,
        way,
        critic=critic,
        critic_config=trunk_config if own else None,
        logits_tokens=settings.logits_tokens,
    )
    lines = [Need("policy", FLOAT * weights.whole)]
    if lora is not None:
        lines.append(Need("adapters", FLOAT * learning))
    lines += [Need("gradients", FLOAT * learning), Need("optimiser", MOMENTS * learning)]
    if lora is None:
        lines.append(Need("reference", _held(weights, settings.frozen_precision, weights.whole)))
    lines += _judges(judges, settings.frozen_precision)
    if own:
        lines.append(Need("critic's own trunk", LEARNS * values))
    lines += _sampler(config, weights, settings.precision, settings.replies_per_iteration, longest)
    lines.append(Need(_activations(texts), one_pass))
    good = KEPT if settings.watch.max_recoveries else FLOAT
    lines.append(Need("last good weights", good * learning + (KEPT * values if good == KEPT else 0), on_host=True))
    if settings.checkpoint_every < settings.iterations:
        lines.append(Need("checkpoint being written", KEPT * (learning + values), on_host=True))
    return Needs("train_policy", tuple(lines), _lower("prompts_per_iteration, forward_tokens", settings))


def needs_of_evaluation(
    policy: Any,
    initial: Any,
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    device: str,
    slots: int,
    longest: int,
) -> Needs:
    """Of `evaluate`, which holds the judged and the initial policy (their configurations) beside its judges.

    Args:
        slots: replies that are decoded together.
        longest: tokens of the longest prompt with its reply.
    """
    weights = Weights.of(policy)
    by_hand = device == "cpu"
    texts = _rows(settings.forward_tokens, by_hand, longest, settings.max_reply_tokens, slots)
    way = Way(settings.precision, by_hand=by_hand)
    one_pass = policy_pass(policy, texts, way, logits_tokens=settings.logits_tokens, learns=False)
    lines = [
        Need("policy", FLOAT * weights.whole),
        Need("initial policy", FLOAT * Weights.of(initial).whole),
        *_judges(judges, "float32"),
        *_sampler(policy, weights, settings.precision, slots, longest),
        Need(_activations(texts), one_pass),
    ]
    return Needs("evaluate", tuple(lines), "Lower forward_tokens, logits_tokens or max_reply_tokens.")


def _pairs(budget: int, longest: int, batch_pairs: int, packed: bool) -> Texts:
    """A full pass of pairs that share two thirds of their text, as those of one prompt do.

    A tree holds the shared part once; without trees it is there twice.
    """
    reply = max(1, longest // 3)
    of_a_pair = longest + reply if packed else 2 * longest
    return Texts(2 * max(1, min(batch_pairs, budget // of_a_pair)), longest, reply)


def _rows(budget: int | None, by_hand: bool, longest: int, reply: int, rows: int) -> Texts:
    tokens = budget or (CHUNK_TOKENS_CPU if by_hand else CHUNK_TOKENS_GPU)
    # The last token of a reply is predicted and never read.
    return Texts(max(1, min(rows, tokens // max(1, longest - 1))), max(1, longest - 1), min(reply, longest - 1))


def _judges(judges: Sequence[Judge], held: HeldPrecision) -> list[Need]:
    lines = []
    for judge in judges:
        if judge.adapter_bytes is None:
            weights = Weights.of(judge.config)
            lines.append(Need(judge.what, _held(weights, held, weights.trunk)))
        else:
            lines.append(Need(f"{judge.what}, an adapter", judge.adapter_bytes))
    return lines


def _held(weights: Weights, precision: HeldPrecision, parameters: int) -> int:
    """Bytes of so many of its parameters where nobody trains it."""
    return FLOAT * parameters - (FLOAT // 2 * weights.products if precision == "bfloat16" else 0)


def _sampler(config: Any, weights: Weights, precision: Precision, slots: int, longest: int) -> list[Need]:
    """Keys and values of all running replies, their logits, and the weights that it holds a copy of."""
    text = config.get_text_config()
    size = 2 if precision == "bfloat16" else FLOAT
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    positions = sum(_positions(text, kind, longest) for kind in _kinds(text))
    cache = slots * positions * 2 * heads * width * size
    lines = [
        Need(f"sampler's cache, {slots} {'reply' if slots == 1 else 'replies'} of {longest} tokens", cache),
        Need("sampler's logits", LOGITS_AT_ONCE * FLOAT * slots * text.vocab_size),
    ]
    if size != FLOAT:
        lines.append(Need("sampler's copy of the weights", size * weights.whole))
    elif weights.whole < JOIN_BELOW_PARAMETERS:
        lines.append(Need("sampler's copy of the weights", FLOAT * weights.products))
    return lines


def _kinds(text: Any) -> Sequence[str]:
    """What each layer attends to."""
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    plain = "sliding_attention" if window else "full_attention"
    return getattr(text, "layer_types", None) or [plain] * text.num_hidden_layers


def _positions(text: Any, kind: str, longest: int) -> int:
    """How many tokens a layer keeps keys and values of; states of other kinds don't grow with the text."""
    if kind == "sliding_attention":
        return min(longest, text.sliding_window)
    return longest if kind == "full_attention" else 0


def _activations(texts: Texts) -> str:
    return f"activations, {texts.rows} {'text' if texts.rows == 1 else 'texts'} of {texts.tokens} tokens"


def _lower(what: str, settings: LoraSettings) -> str:
    if settings.lora_rank:
        return f"Lower {what} or logits_tokens, or set recompute_activations = true."
    return f"Lower {what} or logits_tokens, set recompute_activations = true, or train adapters (lora_rank)."
