"""How PPO holds its models: policy, reference, critic, preference model and its watcher.

Without adapters each is a model of its own. With `lora_rank` one base stays in memory, the initial policy's: the
reference is that base, and every other role an adapter on it (`models/backbone/adapters.py`). A preference model that
was not trained as an adapter of this very base is held whole beside it, which is said once.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch

from models.backbone.adapters import (
    AdapterError,
    LoraSettings,
    StoredAdapter,
    add_adapter,
    digest_of_base,
    has_adapter,
    learned_state,
    lora_of,
    merged,
    save_adapter,
    sharing,
    train_adapter,
)
from models.backbone.precision import hold_products_in_bfloat16
from models.chat.format import ChatFormat, ChatFormatError, check_same_chat
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import save_model
from models.model_folders.scalar_head import scorer_class
from models.policy.critic import copy_to_train
from models.policy.inputs import load_preference_model
from models.policy.model import Policy
from models.preference.model import PreferenceModel, published, scalar_head
from models.runtime.job import JobError


class Roles:
    """The models of one PPO run."""

    def __init__(self, initial: Path, settings: LoraSettings, seed: int, device: torch.device) -> None:
        """Load the initial policy, with adapters once and otherwise for policy and reference each.

        Raises:
            JobError: peft is missing, or the adapter's layers are not there.
        """
        try:
            self.lora = lora_of(settings)
        except AdapterError as error:
            raise JobError(str(error)) from error
        self.initial, self.seed, self.device = initial, seed, device
        self.held: dict[str, str] = {}
        self.policy: Any = load_causal_lm(initial, device=device)
        if self.lora is None:
            self.reference: Any = load_causal_lm(initial, device=device).requires_grad_(False)
            return
        self.reference = self.policy.requires_grad_(False)
        self._base_sha256 = digest_of_base(self.reference.base_model)
        self.policy = self._with_adapter(sharing(self.reference))
        self.held = {"policy": "adapter", "reference": "base"}

    def _with_adapter(self, model: Any) -> Any:
        assert self.lora is not None
        try:
            return add_adapter(model, self.lora, self.seed)
        except AdapterError as error:
            raise JobError(str(error)) from error

    def preference_model(self, role: str, folder: Path) -> PreferenceModel:
        """The preference model of a folder, as an adapter where it is one of the resident base.

        Raises:
            JobError: it does not belong to the initial policy, or the folder holds none.
        """
        if self.lora is None:
            return load_preference_model(folder, self.initial, self.device)
        stored = StoredAdapter.load(folder)
        reason = self._reason_to_hold_whole(stored)
        self.held[role] = "adapter" if reason is None else "whole"
        if stored is None or reason is not None:
            print(
                f"note: the {role.replace('_', ' ')} {reason}; it is held whole beside the initial policy.",
                file=sys.stderr,
            )
            return load_preference_model(folder, self.initial, self.device)
        try:
            check_same_chat(folder, self.initial, "preference model")
        except ChatFormatError as error:
            raise JobError(str(error)) from error
        return PreferenceModel(self._scorer(stored), ChatFormat.load(folder), *published(folder))

    def _reason_to_hold_whole(self, stored: StoredAdapter | None) -> str | None:
        if stored is None:
            return "was trained without lora_rank"
        if stored.base_sha256 != self._base_sha256:
            return f"is an adapter of another base ({stored.base_sha256[:12]}, here {self._base_sha256[:12]})"
        return None

    def _scorer(self, stored: StoredAdapter) -> Any:
        """A classifier around the resident trunk, with the stored adapter and score head."""
        config = copy.deepcopy(self.reference.config)
        config.num_labels = 1
        # Its own trunk is never computed with, so that it takes no memory.
        with torch.device("meta"):
            model = scorer_class(config)(config)
        setattr(model, model.base_model_prefix, sharing(self.reference.base_model))
        assert stored.score is not None
        scalar_head(model).weight = torch.nn.Parameter(stored.score.to(self.device))
        try:
            return stored.apply_to(model).eval()
        except AdapterError as error:
            raise JobError(f"{error} Train the preference model again from this initial policy.") from error

    def trunk_to_train(self, trunk: Any) -> Any:
        """The trunk that a critic trains as its own, starting as `trunk`.

        With adapters it shares the tensors of `trunk`, and has a copy of its adapter, or a new one where it has none.
        """
        if self.lora is None:
            return copy_to_train(trunk)
        self.held["critic"] = "adapter"
        own = sharing(trunk)
        return train_adapter(own) if has_adapter(own) else self._with_adapter(own)

    def hold_in_bfloat16(self, role: str, model: PreferenceModel | Policy) -> None:
        """Hold a role that learns nothing in half the memory, unless it shares its weights with the policy.

        After a critic has its copy of the role's trunk, which learns from what was stored.
        """
        if self.lora is not None and self.held.get(role) != "whole":
            return
        # Not the score head: it computes in float32.
        hold_products_in_bfloat16(model.model.base_model if isinstance(model, PreferenceModel) else model.model)
        model.precision = "bfloat16"

    @property
    def how_held(self) -> dict[str, str] | None:
        """How each role is held, a critic that is not named as a head on the policy's states; None without adapters."""
        return None if self.lora is None else {"critic": "head"} | self.held

    @property
    def trained_parameters(self) -> int | None:
        """How much of the policy is trained; None without adapters, where all of it is."""
        if self.lora is None:
            return None
        return sum(tensor.numel() for tensor in learned_state(self.policy).values())

    def save_policy(self, folder: Path, chat: ChatFormat, card: str) -> None:
        """Write the policy's folder: whole weights, and with adapters the adapter beside them."""
        if self.lora is None:
            save_model(self.policy, folder, chat, card)
            return
        save_model(merged(self.policy), folder, chat, card)
        save_adapter(self.policy, folder, "CAUSAL_LM", self.lora, self._base_sha256)
