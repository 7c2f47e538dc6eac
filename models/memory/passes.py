"""What one forward and backward pass holds at its peak, counted by running it on tensors that have no memory.

The very code of the jobs runs: layers by hand, trees, recomputation, logits in slices. torch's fake tensors carry
shapes and formats alone, so that 70 billion parameters pass through in seconds on any machine. Gradients of the
weights are not part of the peak, as in the second chunk of a batch: they lie there already.

All of it runs in a process of its own (`apart`): masks and angles that are cached on the way have no memory either, and
a training that found them would compute with nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from models.backbone.output_layer import OutputLayer
from models.backbone.precision import Precision, computing_in
from models.backbone.recomputation import recompute_activations
from models.memory.live_bytes import LiveBytes
from models.model_folders.scalar_head import scorer_class
from models.policy.critic import Critic
from models.policy.model import Policy
from models.policy.reply_chunks import ReplyChunk
from models.policy.settings import CriticKind
from models.preference.model import can_pack, pair_scores, scalar_head, tree_scores
from models.preference.pairs import TokenPair
from models.preference.trees import pair_trees
from models.runtime.training_choices import Lora

T = TypeVar("T")
CPU = torch.device("cpu")


def apart(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`function(*args, **kwargs)`, which counts, in a process of its own; all of it must be picklable.

    Raises:
        BrokenProcessPool: that process died.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


@dataclass(frozen=True)
class Way:
    """How a model is computed and what of it learns."""

    precision: Precision = "float32"
    recompute: bool = False
    adapters: bool = False
    """Adapters read what whole weights read, so that as much is kept for them; tables of embeddings don't learn."""
    by_hand: bool = True
    """As on a CPU; no device else has layers by hand."""


@dataclass(frozen=True)
class Texts:
    """Rows of equal length; of each the last `reply_tokens` are a reply."""

    rows: int
    tokens: int
    reply_tokens: int


def policy_pass(
    config: Any,
    texts: Texts,
    way: Way,
    *,
    critic: CriticKind | None = None,
    critic_config: Any = None,
    logits_tokens: int | None = None,
    learns: bool = True,
) -> int:
    """Bytes at the peak of PPO's pass over one chunk: log-probs of the reply tokens, values, and back.

    Args:
        config: of the policy.
        critic: None for none.
        critic_config: of the trunk that a critic of its own has.
        learns: False for a pass that only reads.
    """
    with _no_memory():
        model = _trained(_language_model(config), way)
        policy = Policy(model, way.precision, logits_tokens, head=_head(model))
        policy.by_hand = policy.by_hand and way.by_hand
        values = None
        if critic is not None:
            trunk = (
                model.base_model if critic_config is None else _trained(_language_model(critic_config), way).base_model
            )
            values = Critic(critic, trunk, precision=way.precision, to_train=lambda trunk: trunk)
            _with_gradients(values)
        chunk = _chunk(texts)
        with LiveBytes() as live, torch.set_grad_enabled(learns):
            read = policy.tokens(chunk)
            loss = read.logps.sum()
            if values is not None:
                loss = loss + values(chunk, read.states).sum()
            if learns:
                loss.backward()
        return live.peak


def score_pass(config: Any, texts: Texts, way: Way) -> int:
    """Bytes at the peak of a preference model's pass over one chunk of pairs, and back; two rows are a pair."""
    with _no_memory():
        config = _with_score(config)
        model = _trained(scorer_class(config)(config).eval(), way)
        scalar_head(model).requires_grad_(True)
        pairs = [_pair(texts) for _ in range(max(1, texts.rows // 2))]
        with LiveBytes() as live:
            with computing_in(way.precision, CPU):
                if way.by_hand and can_pack(config):
                    scores = tree_scores(model, pair_trees(pairs, texts.rows * texts.tokens), CPU)
                else:
                    scores = pair_scores(model, pairs, 0, CPU)
            torch.stack(scores).sum().backward()
        return live.peak


@dataclass(frozen=True)
class Weights:
    """Parameters of a model; what is tied counts once."""

    whole: int
    trunk: int
    """Without the output embeddings."""
    products: int
    """Of the trunk's linear layers that are no table of embeddings, which can be held in bfloat16."""
    embeddings: int
    linear: tuple[tuple[str, int, int], ...]
    """Last part of the name, inputs and outputs of each of the trunk's linear layers."""

    def adapters(self, lora: Lora) -> int:
        """Parameters of these adapters on the trunk: rank · (inputs + outputs) of each adapted layer."""
        adapted = (size for name, *size in self.linear if not lora.layers or name in lora.layers)
        return lora.rank * sum(inputs + outputs for inputs, outputs in adapted)

    @classmethod
    def of(cls, config: Any) -> Weights:
        """Of a model of this configuration."""
        with _no_memory():
            model = _language_model(config)
            whole, trunk = _count(model), _count(model.base_model)
            linear = tuple(
                (name.rpartition(".")[2], module.in_features, module.out_features)
                for name, module in model.base_model.named_modules()
                if isinstance(module, nn.Linear)
            )
            products = sum(inputs * outputs for _, inputs, outputs in linear)
            return cls(whole, trunk, products, model.get_input_embeddings().weight.numel(), linear)


@contextlib.contextmanager
def _no_memory() -> Iterator[None]:
    """Tensors made inside have shapes alone.

    Raises:
        RuntimeError: in a process that goes on to compute.
    """
    if multiprocessing.parent_process() is None:
        raise RuntimeError("Passes are counted in a process of its own alone: call it by `apart`.")
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def _language_model(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _trained(model: Any, way: Way) -> Any:
    if way.adapters:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.requires_grad_(False)
    if way.recompute:
        recompute_activations(model.base_model)
    _with_gradients(model)
    return model


def _with_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _head(model: Any) -> OutputLayer:
    return OutputLayer(model.get_output_embeddings(), model.config.get_text_config())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _with_score(config: Any) -> Any:
    config = type(config).from_dict(config.to_dict())
    config.num_labels, config.pad_token_id, config.use_cache = 1, 0, False
    return config


def _chunk(texts: Texts) -> ReplyChunk:
    count = texts.rows * texts.reply_tokens

    def numbers() -> Tensor:
        return torch.zeros(count, dtype=torch.long)

    return ReplyChunk(torch.zeros(texts.rows, texts.tokens, dtype=torch.long), numbers(), numbers(), numbers())


def _pair(texts: Texts) -> TokenPair:
    shared = texts.tokens - texts.reply_tokens
    better, worse = (array("i", [first, *range(texts.reply_tokens - 1)]) for first in (1, 2))
    return TokenPair("", "", "", array("i", range(shared)), better, worse)
