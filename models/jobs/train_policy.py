"""Job: train a policy with PPO against a preference model, from the initial policy.

Inputs: `initial` (prepared policy), `preference_model` and `prompts` (prompt set); optionally `watcher`, a second
preference model that only looks on, and `comparisons`, whose held-out part measures mean log-p accuracy. The result is
a Hugging Face folder. `PolicyTraining.run` is the loop; settings are in models/policy/settings.py, sampling in
models/policy/rollout.py, learning in models/policy/learning.py, the maths in models/policy/ppo.py, the tripwires in
models/policy/watch.py.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from models.chat.format import ChatFormat
from models.memory.needs import config_of, judges_of, needs_of_policy
from models.memory.room import check_room
from models.model_folders.saving import model_card
from models.policy.settings import PPOSettings
from models.policy.training import CARD, PolicyTraining
from models.runtime.job import Job, main
from models.runtime.results import part_to_json, result_to_json
from models.runtime.settings import settings_from

NAME = "train_policy"


def run(job: Job) -> None:
    """Train and publish a snapshot.

    Raises:
        JobError: the inputs don't belong together, or no optimiser step was taken.
    """
    settings = settings_from(PPOSettings, job.settings)
    chat = ChatFormat.load(job.input("initial"))
    initial, scorer, watcher = job.input("initial"), job.input("preference_model"), job.inputs.get("watcher")

    def check(longest: int) -> None:
        judges = judges_of(scorer, watcher, shared=settings.lora_rank > 0)
        needs = functools.partial(needs_of_policy, config_of(initial), judges, settings, job.device.type, longest)
        check_room(job, needs, [initial, scorer])

    training = PolicyTraining(job, settings, chat, before_loading=check)
    result = training.run()

    def write(folder: Path) -> None:
        facts = {key: value for key, value in part_to_json(result).items() if not isinstance(value, (list, dict))}
        training.roles.save_policy(folder, chat, model_card("Policy snapshot", CARD, facts, tags=("ppo",)))
        training.snapshots.copy_chosen(folder)

    job.publish(write, result_to_json(result))
    shutil.rmtree(training.snapshots.folder, ignore_errors=True)


if __name__ == "__main__":
    main(NAME, run)
