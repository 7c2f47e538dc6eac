"""Both services as the processes that people run, and a policy server that is killed while replies grow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.sampling.engine import SamplingParams
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import open_pairing
from orchestrator.instance.ports import free_port
from tests.orchestrator.serving.processes import ended, start, wait_until_live
from tests.orchestrator.serving.tiny_policies import Policies
from tests.paths import PROJECT_ROOT
from tests.running import add_cycle, deploy

NUM_RATERS = 6
REPLY_TOKENS = 200


def rater_tokens(env: dict[str, str]) -> list[str]:
    """Tokens of new raters, by the command that an operator uses."""
    tokens = []
    command = [sys.executable, "-m", "orchestrator.cli", "rater", "add", "--json"]
    for number in range(2):
        run = subprocess.run([*command, f"rater-{number}"], cwd=PROJECT_ROOT, env=env, capture_output=True, check=True)
        tokens.append(json.loads(run.stdout)["token"])
    return tokens


@pytest.mark.slow
def test_a_policy_server_killed_in_mid_pair_loses_nothing(
    database: Callable[[], Session], database_url: str, policies: Policies, home: Path
) -> None:
    first, second = policies.digests[:2]
    with database() as session, session.begin():
        rows = {row.digest: row for row in session.scalars(select(t.Artifact))}
        deploy(session, rows[first], add_cycle(session, 0, max_reply_tokens=REPLY_TOKENS))
        open_pairing(
            session, "model_comparison", policy(session, rows[first].id).id, policy(session, rows[second].id).id
        )
    policy_port, feedback_port = free_port(), free_port()
    env = os.environ | {
        "DATABASE_URL": database_url,
        "ORCHESTRATOR_ARTIFACT_URL": policies.store.url,
        "ORCHESTRATOR_POLICY_URL": f"http://127.0.0.1:{policy_port}",
        "ORCHESTRATOR_DEVICE": "cpu",
    }
    killed = start("serve-policy", policy_port, env)
    feedback = start("serve-feedback", feedback_port, env)
    with ended(feedback):
        tokens = rater_tokens(env)
        wait_until_live(policy_port)
        wait_until_live(feedback_port)
        url = f"http://127.0.0.1:{feedback_port}"

        def whole_dialogue(number: int) -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {tokens[number % len(tokens)]}"}
            task = ("helpful", "model_comparison")[number % 2]
            with httpx.Client(base_url=url, headers=headers, timeout=120) as client:

                def post(path: str, **body: Any) -> dict[str, Any]:
                    answer = client.post(path, json=body)
                    assert answer.status_code == 201, answer.text
                    fields: dict[str, Any] = answer.json()
                    return fields

                dialogue_id = post("/api/dialogues", task=task)["dialogue_id"]
                message = post(f"/api/dialogues/{dialogue_id}/messages", content=f"number {number}", client_key="m")
                pair = post(f"/api/messages/{message['message_id']}/pairs", client_key="p")
                post(f"/api/pairs/{pair['pair_id']}/comparison", side="a", strength=1)
                return pair

        with ThreadPoolExecutor(NUM_RATERS) as pool:
            dialogues = [pool.submit(whole_dialogue, number) for number in range(NUM_RATERS)]
            _wait_for_replies(policy_port)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert not any(dialogue.done() for dialogue in dialogues)
            with ended(start("serve-policy", policy_port, env)):
                pairs = [dialogue.result(120) for dialogue in dialogues]
    assert all(pair[side]["complete"] for pair in pairs for side in "ab")
    with database() as session:
        assert len(session.scalars(select(t.Comparison)).all()) == NUM_RATERS
        candidates = session.execute(
            select(t.Candidate, t.Artifact.digest, t.Message.content)
            .join(t.Artifact, t.Artifact.id == t.Candidate.snapshot_id)
            .join(t.Pair, t.Pair.id == t.Candidate.pair_id)
            .join(t.Message, t.Message.id == t.Pair.parent_id)
        ).all()
    assert len(candidates) == 2 * NUM_RATERS
    assert {digest for _, digest, _ in candidates} == {first, second}
    for candidate, digest, content in candidates:
        params = SamplingParams(REPLY_TOKENS, seed=candidate.seed)
        expected, _ = policies.completion(digest, [{"role": "user", "content": content}], params)
        assert candidate.text == expected.replace("\x00", "\ufffd")


def _wait_for_replies(port: int) -> None:
    """Return when every rater's replies are being decoded."""
    deadline = time.monotonic() + 30
    while httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["replies"] < NUM_RATERS:
        assert time.monotonic() < deadline
