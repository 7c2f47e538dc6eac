"""Adapters (LoRA) on a frozen model: made, stored in peft's format, read back, and merged into plain weights.

Roles that differ only by an adapter are models of their own that share every tensor but the adapters' (`sharing`):
nothing is switched on and off between them, and the base can't be changed by any. peft makes the layers; it is an
optional extra, imported here alone and only when an adapter is made. Read next: `models/policy/roles.py`.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.runtime.training_choices import Lora, LoraSettings

FOLDER = "adapter"
WEIGHTS = "adapter_model.safetensors"  # the names of these two are peft's
CONFIG = "adapter_config.json"
BASE = "base.json"
_NAME = "default"  # each model has one adapter
_PREFIX = "base_model.model."  # of every tensor in peft's files

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


class AdapterError(Exception):
    """An adapter can't be made or read."""


_EXPERTS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""What the projections of experts are called."""


def lora_of(settings: LoraSettings) -> Lora | None:
    """The adapter that is asked for, or None.

    Raises:
        AdapterError: one is asked for, and peft is not installed.
    """
    if settings.lora_rank == 0:
        return None
    _peft()
    return Lora(settings.lora_rank, settings.lora_alpha, tuple(settings.lora_layers))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise AdapterError(
            f"lora_rank is above 0, but peft is not installed ({error}). "
            "Install it with: pip install 'peft>=0.18', or set lora_rank = 0."
        ) from error
    return peft


@functools.cache
def _layer_class() -> type[nn.Module]:
    """peft's layer for nn.Linear, adding to the base's product in its place.

    peft's own forward makes three more tensors of that size, which in a preference model's step left 110 MB of holes in
    the heap (docs/log/adapters.md, "Adapters (LoRA): one base for all roles").
    """

    class Adapted(_peft().tuners.lora.Linear):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            a, b = _matrices(self)
            flat = x.reshape(-1, x.shape[-1])
            product = self.base_layer(flat)
            product.addmm_(F.linear(flat, a), b.t().to(product.dtype), alpha=self.scaling[_NAME])
            return product.view(*x.shape[:-1], -1)

    return Adapted


class LinearParts(NamedTuple):
    """A linear layer as numbers: x·Wᵀ + bias + scale · (x·Aᵀ)·Bᵀ."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None  # rank×in, with b None where there is no adapter
    b: Tensor | None  # out×rank
    scale: float

    @property
    def are_float32(self) -> bool:
        """Whether each of them is, which is there."""
        return all(part is None or part.dtype == torch.float32 for part in self[:4])


def linear_parts(layer: Any) -> LinearParts | None:
    """What a linear layer, with an adapter or without, multiplies by; None where it is a layer of another kind.

    Only of layers made here, which do nothing else: peft's own may be merged, switched off, or drop out.
    """
    if type(layer) is nn.Linear:
        return LinearParts(layer.weight, layer.bias, None, None, 0.0)
    # Not asked for before an adapter was made: it imports peft.
    if not _layer_class.cache_info().currsize or type(layer) is not _layer_class():
        return None
    adapted: Any = layer
    base = adapted.base_layer
    if type(base) is not nn.Linear:
        return None
    return LinearParts(base.weight, base.bias, *_matrices(adapted), adapted.scaling[_NAME])


# Models that share a base


def sharing(model: Any) -> Any:
    """A model of its own with the same tensors in it; only an adapter's are copied."""
    own = {id(p) for _, layer in adapted_layers(model) for p in _matrices(layer)}
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in own}
    return copy.deepcopy(model, shared)


def add_adapter(model: Any, lora: Lora, seed: int) -> Any:
    """Give the trunk of a model an adapter that changes nothing yet; it alone can be trained. Returns the model.

    Args:
        model: with a head or without; its layers are replaced in place, its tensors are not.
        seed: of A, whatever the state of torch's own random numbers, which stay as they are.

    Raises:
        AdapterError: peft is missing, or a layer of `lora.layers` is not there.
    """
    peft = _peft()
    trunk = model.base_model
    linear = linear_layers(trunk)
    unknown = sorted(set(lora.layers) - set(linear))
    if unknown:
        raise AdapterError(
            f"lora_layers names {', '.join(unknown)}; the linear layers of this {type(trunk).__name__} are "
            f"{', '.join(linear)}. Name some of them, or none for all."
        )
    chosen = sorted(lora.layers or set(linear) - _like_experts(trunk))
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=chosen,
        fan_in_fan_out=_transposed(trunk, chosen),
    )
    config._register_custom_module({nn.Linear: _layer_class()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, trunk, adapter_name=_NAME)
    if any(hasattr(layer, "parameter_name") for _, layer in adapted_layers(trunk)):
        others = ", ".join(sorted(set(linear) - _like_experts(trunk)))
        raise AdapterError(
            f"With lora_layers {', '.join(chosen)} the experts of this {type(trunk).__name__} would get adapters, "
            f"which can't be merged here. Name others, or none: {others}."
        )
    model.requires_grad_(False)
    train_adapter(model)
    return model


def train_adapter(model: Any) -> Any:
    """Let the adapter of a model learn, and leave everything else as it is. Returns the model."""
    for _, layer in adapted_layers(model):
        for matrix in _matrices(layer):
            matrix.requires_grad_(True)
    return model


def linear_layers(trunk: Any) -> list[str]:
    """Last parts of the names of all linear layers of a trunk without adapters, sorted."""
    return sorted({name.rpartition(".")[2] for name, module in trunk.named_modules() if _is_linear(module)})


def _like_experts(trunk: Any) -> set[str]:
    """Names of layers that peft takes for the experts of a mixture too, which keep theirs as plain parameters."""
    owners = (name.rpartition(".") for name, _ in trunk.named_parameters())
    fused = {own for owner, _, own in owners if own in _EXPERTS and not _is_linear(trunk.get_submodule(owner))}
    return set(_EXPERTS) if fused else set()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _transposed(trunk: Any, layers: Sequence[str]) -> bool:
    """Whether the layers keep their weights in×out, as GPT-2's do."""
    kinds = {type(m).__name__ for name, m in trunk.named_modules() if name.rpartition(".")[2] in layers}
    return "Conv1D" in kinds


# What was learned


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of everything in a model that has an adapter."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def adapted_names(model: nn.Module) -> list[str]:
    """Last parts of the names of the layers that have an adapter, sorted."""
    return sorted({name.rpartition(".")[2] for name, _ in adapted_layers(model)})


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer of a model has one."""
    return next(adapted_layers(model), None) is not None


def low_rank(layer: Any) -> tuple[Tensor, Tensor] | None:
    """A (rank×in) and alpha/rank · B (out×rank) of a linear layer, or None where it has no adapter.

    The `weight` of a layer with an adapter is its base's alone.
    """
    if not hasattr(layer, "lora_A"):
        return None
    a, b = _matrices(layer)
    return a.detach(), b.detach() * layer.scaling[_NAME]


def _matrices(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight


def merged(model: Any) -> Any:
    """The same model without adapters, what they do being added to copies of the weights; `model` stays as it is."""
    plain = sharing(model)
    for name, layer in list(adapted_layers(plain)):
        base = layer.base_layer
        base.weight = nn.Parameter(base.weight.detach() + layer.get_delta_weight(_NAME), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, base)
    return plain


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that training may change: all, or with adapters those that have a gradient."""
    state: dict[str, Tensor] = module.state_dict()
    if not has_adapter(module):
        return state
    return {name: state[name] for name, parameter in module.named_parameters() if parameter.requires_grad}


def restore(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Go back to a `learned_state`.

    Raises:
        RuntimeError: it belongs to another module.
    """
    expected = set(learned_state(module))
    if expected != set(state):
        raise RuntimeError(f"the state differs from the module's in {sorted(expected ^ set(state))}")
    module.load_state_dict(state, strict=not has_adapter(module))


# Files


def digest_of_base(trunk: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a trunk without adapters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(model: Any, folder: Path, task: Task, lora: Lora, base_sha256: str) -> None:
    """Write the adapter of a model, a classifier's score head with it, as peft reads it, into `folder`/adapter.

    base.json names the frozen trunk that it belongs to. Nothing here depends on where or when it was trained.
    """
    target = folder / FOLDER
    target.mkdir()
    tensors: dict[str, Tensor] = {}
    for name, layer in adapted_layers(model):
        for part, matrix in zip(("lora_A", "lora_B"), _matrices(layer), strict=True):
            tensors[f"{_PREFIX}{name}.{part}.weight"] = matrix.detach().cpu().contiguous()
    if task == "SEQ_CLS":
        tensors[f"{_PREFIX}score.weight"] = model.score.weight.detach().cpu().contiguous()
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": adapted_names(model),
        "modules_to_save": ["score"] if task == "SEQ_CLS" else None,
        "fan_in_fan_out": any(layer.fan_in_fan_out for _, layer in adapted_layers(model)),
        "bias": "none",
        "inference_mode": True,
    }
    _write(target / CONFIG, config)
    _write(target / BASE, {"format": 1, "trunk_sha256": base_sha256})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it lies in a folder."""

    lora: Lora
    base_sha256: str
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> StoredAdapter | None:
        """The adapter beside the merged weights of a model's folder, or None where there is none."""
        source = folder / FOLDER
        if not (source / BASE).exists():
            return None
        config, base = (json.loads((source / name).read_text(encoding="utf-8")) for name in (CONFIG, BASE))
        lora = Lora(config["r"], config["lora_alpha"], tuple(config["target_modules"]))
        return cls(lora, base["trunk_sha256"], load_file(source / WEIGHTS))

    @property
    def score(self) -> Tensor | None:
        """Weights of a preference model's head, 1×D."""
        return self.tensors.get(f"{_PREFIX}score.weight")

    def apply_to(self, model: Any) -> Any:
        """Give a model this adapter, frozen. Returns the model.

        Raises:
            AdapterError: peft is missing, or the model has other layers.
        """
        add_adapter(model, self.lora, seed=0).requires_grad_(False)
        for name, layer in adapted_layers(model):
            for part, matrix in zip(("lora_A", "lora_B"), _matrices(layer), strict=True):
                stored = self.tensors.get(f"{_PREFIX}{name}.{part}.weight")
                if stored is None or stored.shape != matrix.shape:
                    raise AdapterError(f"The stored adapter has no {part} of shape {list(matrix.shape)} for {name}.")
                matrix.data.copy_(stored)
        return model
