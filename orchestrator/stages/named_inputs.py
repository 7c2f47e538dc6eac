"""What a configuration names, looked for before a cycle is opened: one that can't run must not stand in another's way.

Only what the machine of the cycle's flow reads is looked for; files of the trainings may lie where the GPU is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config import CycleConfig
from orchestrator.errors import ConfigError
from orchestrator.stages.initial_policy import model_folder

# A model that is pretrained here is a Llama.
PRETRAINED_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CONFIG_ALONE = ("config.json",)


def check_named_inputs(config: CycleConfig) -> None:
    """Look for the initial policy's model, the files and the layers that the configuration names.

    Raises:
        ConfigError: one is not there; the message names the key.
    """
    policy, prompts = config.initial_policy, config.prompts
    files: dict[str, Sequence[str | None]] = {
        "comparisons.check_against": config.comparisons.check_against,
        "prompts.train_file": [prompts.train_file],
        "prompts.held_out_file": [prompts.held_out_file],
    }
    if policy.pretrain is not None:
        files["initial_policy.pretrain.files"] = policy.pretrain.files
    if policy.distill is not None:
        files["initial_policy.distill.files"] = policy.distill.files
        files["initial_policy.distill.prompt_file"] = [policy.distill.prompt_file]
    for key, named in files.items():
        for file in named:
            if file is not None and not Path(file).is_file():
                raise ConfigError(f"{key} names {file}, which is no file. Give the path of one.")
    known = PRETRAINED_LAYERS
    if policy.path is not None:
        known = linear_layers(model_folder(policy.path, policy.revision, CONFIG_ALONE))
    for section, layers in (
        ("preference_model", config.preference_model.lora_layers),
        ("ppo", config.ppo.lora_layers),
    ):
        unknown = sorted(set(layers) - known)
        # A model whose weights are not here yet is read when it is.
        if known and unknown:
            raise ConfigError(
                f"{section}.lora_layers names {', '.join(unknown)}; the initial policy's layers are "
                f"{', '.join(sorted(known))}. Name some of them, or none for all."
            )


def linear_layers(folder: Path) -> set[str]:
    """Last parts of the names of the repeated layers with a matrix; reads headers of the weights alone.

    Empty where there are no safetensors, or none that can be read: whoever loads the weights says what is wrong.
    """
    # Not at the top: whatever serves people imports this file, and starts without what learning needs.
    from safetensors import SafetensorError, safe_open

    found = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as weights:
                shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return set()
        for name, shape in shapes.items():
            *path, layer, last = name.split(".") if name.endswith(".weight") else ("", "")
            if last == "weight" and len(shape) == 2 and any(part.isdecimal() for part in path):
                found.add(layer)
    return found
