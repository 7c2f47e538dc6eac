"""The demo's training runs without its services: its world, its initial policy, its raters, its settings.

`initial` takes some minutes, `learning_run` less than one; for tests that are marked long.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from models.chat.format import ChatFormat
from models.jobs import pretrain, train_policy, train_preference_model
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job
from models.sampling.engine import DecodeEngine, SamplingParams
from orchestrator.config import load_config
from orchestrator.config.base import told
from orchestrator.world.raters import SyntheticRater
from orchestrator.world.requests import Request, draw_request
from orchestrator.world.settings import EXAMPLE, DemoConfig
from orchestrator.world.world import World
from tests.models.preference_world import write_comparison_set

AGREEMENT = 0.75
RUNS_PER_MODEL = 5
KINDS = ("helpful", "helpful", "harmless")


@cache
def _config() -> DemoConfig:
    return load_config(EXAMPLE, [], DemoConfig)


def run_job(module: Any, out: Path, inputs: dict[str, Path], settings: dict[str, Any], seed: int) -> Path:
    """Run a job in this process, unless it has its result already."""
    out.mkdir(parents=True, exist_ok=True)
    spec = {"inputs": {role: str(path) for role, path in inputs.items()}, "settings": settings, "seed": seed}
    job = Job(spec | {"device": "cpu"}, out)
    job.prepare_process()
    if not job.done:
        module.run(job)
    return out


def settings_of(section: Any, settings: type) -> dict[str, Any]:
    """What a job is told of a section of the demo's configuration."""
    return {name: value for name, value in told(section, settings).items() if name != "threads"}


def initial(folder: Path) -> Path:
    """The demo's initial policy."""
    config = _config()
    world, pretraining = config.world, config.initial_policy.pretrain
    assert pretraining is not None
    if not (folder / "world").exists():
        World(0).write_inputs(
            folder / "world", num_dialogues=world.num_dialogues, num_evaluation=world.num_evaluation, taste="truth"
        )
    settings = settings_of(pretraining, pretrain.PretrainSettings)
    return run_job(pretrain, folder / "initial", {"text": folder / "world"}, settings, 0) / "result"


def _requests(seed: int, count: int) -> list[Request]:
    rng = random.Random(f"{seed}/requests")
    return [draw_request(rng, KINDS[i % len(KINDS)]) for i in range(count)]


def _record(number: int, request: Request, better: str, worse: str) -> dict[str, Any]:
    return {
        "id": f"{number:06}",
        "split": "held_out" if number % 5 == 0 else "train",
        "source": "raters",
        "tranche": "base",
        "question": request.kind,
        "strength": None,
        "rater": "r1",
        "turn": 1,
        "prompt": [{"role": "user", "content": request.text}],
        "better": [{"role": "assistant", "content": better}],
        "worse": [{"role": "assistant", "content": worse}],
    }


def comparisons(policy: Path, folder: Path, seed: int, count: int = 500) -> Path:
    """Pairs of replies of a policy, compared by a rater of the demo."""
    chat, model = ChatFormat.load(policy), load_causal_lm(policy)
    requests = [request for request in _requests(seed, count) for _ in range(2)]
    prompts = [chat.encode([{"role": "user", "content": request.text}], reply=True) for request in requests]
    replies = [
        chat.decode(reply.ids)
        for reply in DecodeEngine(model, chat.eos_id, max_slots=64).generate(
            prompts, [SamplingParams(40, seed=seed * 100_000 + i) for i in range(len(prompts))]
        )
    ]
    rater, records = SyntheticRater("truth", AGREEMENT, f"{seed}/rater"), []
    for number, (request, a, b) in enumerate(zip(requests[::2], replies[::2], replies[1::2], strict=True)):
        side = rater.compare(request.kind, request.text, a, b).side
        if side != "none":
            better, worse = (a, b) if side == "a" else (b, a)
            records.append(_record(number, request, better, worse))
    return write_comparison_set(folder, records)


def prompt_set(folder: Path, seed: int, count: int = 400) -> Path:
    """Requests as raters write them."""
    folder.mkdir(parents=True)
    with (folder / "prompts.jsonl").open("w") as file:
        for number, request in enumerate(_requests(seed, count)):
            messages = [{"role": "user", "content": request.text}]
            record = {"id": f"{number:016}", "kind": request.kind, "split": "train", "messages": messages}
            file.write(json.dumps(record) + "\n")
    return folder


def preference_model(policy: Path, folder: Path, seed: int) -> Path:
    """A preference model of the demo's size, of comparisons of its own."""
    if not (folder / "comparisons").exists():
        comparisons(policy, folder / "comparisons", seed)
    settings = settings_of(_config().preference_model, train_preference_model.PreferenceModelSettings)
    inputs = {"initial": policy, "comparisons": folder / "comparisons"}
    return run_job(train_preference_model, folder / "model", inputs, settings, seed) / "result"


def learning_run(policy: Path, folder: Path, seed: int, **changed: Any) -> Path:
    """PPO of the demo's size: its own prompts and random numbers, one of RUNS_PER_MODEL against a preference model.

    The next preference model is its watcher.
    """
    config, number = _config(), seed // RUNS_PER_MODEL
    out = folder / str(seed)
    if not (out / "prompts").exists():
        prompt_set(out / "prompts", seed)
    scorer, watcher = (preference_model(policy, folder / f"pm-{n}", n) for n in (number, number + 1))
    inputs = {"initial": policy, "preference_model": scorer, "watcher": watcher, "prompts": out / "prompts"}
    ppo = settings_of(config.ppo, train_policy.PPOSettings) | {"harmless_weight": config.prompts.harmless_weight}
    return run_job(train_policy, out / "policy", inputs, ppo | changed, seed)
