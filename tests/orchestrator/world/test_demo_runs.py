"""The demo as a newcomer starts it, small; and what its initial policy can do. Slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.initial_policy.settings import PretrainSettings
from orchestrator.config import load_config, told
from orchestrator.instance.training_jobs import run_job
from orchestrator.world.settings import EXAMPLE, DemoConfig
from orchestrator.world.world import World, own_axis, true_scores
from tests.orchestrator.world.small_demo import ONE_SMALL_CYCLE, demo
from tests.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow


def run_demo(home: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ORCHESTRATOR_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)}
    return demo([sys.executable, "-m", "orchestrator.cli"], out, words, environment)


def test_a_small_demo_runs_and_started_again_repeats_nothing(tmp_path: Path) -> None:
    home, out = tmp_path / "a home", tmp_path / "out"
    out.mkdir()
    done = run_demo(home, out, *ONE_SMALL_CYCLE)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads((out / "demo-report.json").read_text())
    assert [entry["cycle"] for entry in report["cycles"]] == [0, 1]
    assert report["cycles"][0]["snapshot"] != report["cycles"][1]["snapshot"]
    assert report["cycles"][1]["comparisons"] >= 80
    # No cycle follows, and the last one's report has what raters said after it all the same.
    reports = sorted(home.rglob("artifacts/**/report.json"), key=lambda file: file.stat().st_mtime_ns)
    assert len(reports) == 2
    before, after = (json.loads(file.read_text()) for file in reports)
    assert (before["cycle"], before["elo"], after["cycle"]) == (1, None, 1)
    assert after["elo"]["elo"] == report["cycles"][1]["elo"]
    assert after["weeks"][-1]["elo"] == after["elo"]["elo"]
    again = run_demo(home, out, *ONE_SMALL_CYCLE)
    assert again.returncode == done.returncode, again.stdout + again.stderr
    assert "pretrain" not in again.stdout.split("cycle  comparisons")[0]
    assert json.loads((out / "demo-report.json").read_text())["cycles"] == report["cycles"]


def test_a_mistake_ends_with_status_2(tmp_path: Path) -> None:
    done = run_demo(tmp_path, tmp_path, "--set", "raters.taste=sweet")
    assert done.returncode == 2
    assert "raters.taste" in done.stderr


def test_the_initial_policy_reaches_30_to_60_percent_and_beats_its_own_longest_replies(tmp_path: Path) -> None:
    """The model that the demo pretrains, in one thread; always refusing is worth at most 0.3 (test_world.py)."""
    from models.chat.format import ChatFormat
    from models.model_folders.loading import load_causal_lm
    from models.sampling.engine import DecodeEngine, SamplingParams

    config = load_config(EXAMPLE, [], DemoConfig)
    World(0).write_inputs(tmp_path / "text", num_dialogues=config.world.num_dialogues, num_evaluation=3, taste="truth")
    assert config.initial_policy.pretrain is not None
    settings = told(config.initial_policy.pretrain, PretrainSettings)
    run = run_job("pretrain", inputs={"text": tmp_path / "text"}, settings=settings, seed=0, work=tmp_path / "work")
    chat = ChatFormat.load(run.result)
    engine = DecodeEngine(load_causal_lm(run.result), chat.eos_id, 64)
    requests = World(0).evaluation_requests(300)

    def replies(seed: int) -> list[str]:
        prompts = [chat.encode([{"role": "user", "content": request.text}], reply=True) for request in requests]
        params = [SamplingParams(40, seed=1000 * seed + i) for i in range(len(requests))]
        return [chat.decode(completion.ids) for completion in engine.generate(prompts, params)]

    samples = [replies(seed) for seed in range(8)]
    texts = [request.text for request in requests]
    initial = true_scores((text, reply) for sample in samples for text, reply in zip(texts, sample, strict=True))
    assert 0.30 < initial.helpful < 0.60
    assert 0.30 < initial.harmless < 0.60
    # Above the best that always refusing can do, and above every constant reply (test_world.py holds these numbers).
    assert initial.overall > 0.36
    longest = [max(several, key=len) for several in zip(*samples, strict=True)]
    assert true_scores(zip(texts, longest, strict=True)).overall < initial.overall
    # No reply of the model, given to every request, comes near.
    constants = {reply for sample in samples for reply in sample}
    best = max(sum(own_axis(request, constant) for request in requests) for constant in constants) / len(requests)
    assert best < initial.overall - 0.1
