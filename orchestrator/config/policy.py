"""Sections about training the policy: its prompts, PPO, and what stops PPO."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from models.policy.settings import PPOTraining, PromptMix, WritingSettings
from models.runtime.training_choices import LoraSettings
from orchestrator.config.base import STRICT, PathText, Threads, key, key_of


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptsSection(PromptMix):
    """What PPO answers in training, and what snapshots are judged on."""

    train_file: PathText | None = key(None, "Extra training prompts, JSONL of {kind, messages}.")
    held_out_file: PathText | None = key(
        None, "Judge on these prompts in place of those of the held-out dialogues; JSONL of {kind, messages}."
    )
    # None are written by default, so that 0 means something here; the job is started where there is one to write.
    written: int = key_of(WritingSettings, "num_written", default=0, ge=0)
    written_examples: int = key_of(WritingSettings, "num_examples")
    written_max_tokens: int = key_of(WritingSettings, "max_prompt_tokens")
    written_min_characters: int = key_of(WritingSettings, "min_characters")
    written_temperature: float = key_of(WritingSettings, "temperature")
    written_max_attempts: int = key_of(WritingSettings, "max_attempts")

    @property
    def writing(self) -> WritingSettings:
        """The same as the job knows it."""
        return WritingSettings(
            num_written=self.written,
            num_examples=self.written_examples,
            max_prompt_tokens=self.written_max_tokens,
            min_characters=self.written_min_characters,
            temperature=self.written_temperature,
            max_attempts=self.written_max_attempts,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PPOSection(PPOTraining, LoraSettings, Threads):
    """PPO against the preference model's score, with a KL penalty to the initial policy."""
