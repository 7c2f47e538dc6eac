"""A detector before the policies: far requests are logged, flagged or refused; without the detector nothing passes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.chat.format import ChatFormat, Message
from models.detectors.detector import save_detector
from models.detectors.fitting import fit_detector
from models.detectors.settings import OodSettings
from models.model_folders.loading import load_causal_lm
from orchestrator.cli import main
from orchestrator.instance.ports import free_port
from orchestrator.serving.far_requests import DetectorConfig
from tests.orchestrator.serving.processes import ended, start, wait_until_live
from tests.orchestrator.serving.tiny_policies import Policies, Serve, Served, code_of
from tests.running import add_artifact

NEAR, FAR = "hello 3", "]]]]{{{{####"
Guarded = Callable[[str], AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> str:
    source, folder = policies.store.fetch(policies.digests[0]), tmp_path_factory.mktemp("detector")
    home: list[list[Message]] = [[{"role": "user", "content": f"hello {number}"}] for number in range(40)]
    model, chat, settings = load_causal_lm(source), ChatFormat.load(source), OodSettings(layer=1, quantile=1.0)
    fitted = fit_detector(model, chat, home, settings)
    told = {"kind": "relative", "layer": 1, "threshold": fitted.threshold}
    save_detector(model, chat, fitted.statistics, told, folder)
    return policies.store.publish(folder).digest


@pytest.fixture
def guarded(serve: Serve, live: str, detector: str, database: Callable[[], Session]) -> Guarded:
    with database() as session, session.begin():
        add_artifact(session, detector, digest=detector, kind="ood_detector")

    @contextmanager
    def start(action: Any) -> Iterator[Served]:
        with serve(detector=DetectorConfig(detector[:20], action)) as server:
            server.wait_for(lambda health: health["live"] == live)
            yield server

    return start


def test_far_requests_are_refused_and_near_ones_answered(guarded: Guarded) -> None:
    with guarded("refuse") as server:
        assert code_of(server.chat(content=FAR)) == (403, "out_of_distribution")
        assert code_of(server.chat(content=FAR, stream=True)) == (403, "out_of_distribution")
        near = server.chat(content=NEAR)
        assert near.status_code == 200
        assert "ood" not in near.json()
        assert "policy_server_far_requests_total 2.0" in server.client.get("/metrics").text


def test_answers_are_flagged(guarded: Guarded) -> None:
    with guarded("flag") as server:
        far, near = (server.chat(content=content).json()["ood"] for content in (FAR, NEAR))
        assert far["flagged"]
        assert not near["flagged"]
        assert near["score"] <= near["threshold"] == far["threshold"] < far["score"]
        assert '"flagged": true' in server.chat(content=FAR, stream=True).text


def test_far_requests_are_logged_without_their_text(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    with guarded("log") as server, caplog.at_level(logging.INFO):
        answer = server.chat(content=FAR)
        assert answer.status_code == 200
        assert "ood" not in answer.json()
        assert server.chat(content=NEAR).status_code == 200
    assert caplog.text.count("far from home") == 1
    assert FAR not in caplog.text


def test_a_server_takes_its_detector_from_the_environment(
    live: str, detector: str, policies: Policies, database: Callable[[], Session], database_url: str, home: Path
) -> None:
    with database() as session, session.begin():
        add_artifact(session, detector, digest=detector, kind="ood_detector")
    port = free_port()
    told = {"DATABASE_URL": database_url, "ORCHESTRATOR_ARTIFACT_URL": policies.store.url, "ORCHESTRATOR_DEVICE": "cpu"}
    asked = {"ORCHESTRATOR_DETECTOR": detector[:20], "ORCHESTRATOR_DETECTOR_ACTION": "refuse"}
    with ended(start("serve-policy", port, os.environ | told | asked)):
        wait_until_live(port)
        for content, status in ((FAR, 403), (NEAR, 200)):
            request = {"model": "policy-live", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=request, timeout=60)
            assert answer.status_code == status, answer.text


def test_a_server_without_its_detector_lets_nothing_pass(
    serve: Serve, live: str, policies: Policies, database: Callable[[], Session], tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text("{}")
    broken = policies.store.publish(tmp_path).digest
    with database() as session, session.begin():
        add_artifact(session, broken, digest=broken, kind="ood_detector")
    for digest, expected in ((broken, (503, "detector_unusable")), ("sha256:" + "0" * 64, (404, "model_not_found"))):
        with serve(detector=DetectorConfig(digest, "log")) as server:
            server.wait_for(lambda health: health["live"] == live)
            assert code_of(server.chat()) == expected


def test_a_detector_fitted_by_command_stands_before_the_policies(
    serve: Serve,
    live: str,
    policies: Policies,
    database: Callable[[], Session],
    database_url: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_ARTIFACT_URL", policies.store.url)
    (home / "asked.txt").write_text("".join(f"hello {number}\n" for number in range(40)))
    (home / "bad.txt").write_text(f"{FAR}\n$$$$ %%%% ^^^^\n")
    words = ["--policy", live, "--prompts", str(home / "asked.txt"), "--examples", str(home / "bad.txt")]
    assert main(["ood", "fit", *words, "--quantile", "1", "--json"]) == 0
    detector = json.loads(capsys.readouterr().out)
    with database() as session:
        parents = session.execute(
            select(t.LineageEdge.role, t.Artifact.kind)
            .join(t.Artifact, t.Artifact.id == t.LineageEdge.parent_id)
            .where(t.LineageEdge.child_id == detector["id"])
        ).all()
    assert {tuple(row) for row in parents} == {
        ("policy", "snapshot"),
        ("prompts", "ood_prompts"),
        ("examples", "ood_prompts"),
    }
    # Asked again it is found; the list knows it once.
    assert main(["ood", "fit", *words, "--quantile", "1"]) == 0
    assert f"serve-policy --detector {detector['digest']}" in capsys.readouterr().out
    assert main(["ood", "list", "--json"]) == 0
    assert [row["digest"] for row in json.loads(capsys.readouterr().out)] == [detector["digest"]]
    with serve(detector=DetectorConfig(detector["digest"], "refuse")) as server:
        server.wait_for(lambda health: health["live"] == live)
        assert code_of(server.chat(content=FAR)) == (403, "out_of_distribution")
        assert server.chat(content=NEAR).status_code == 200
    # What is not there, and what is no policy.
    assert main(["ood", "fit", "--policy", live]) == 2
    assert "There is no prompt_set yet" in capsys.readouterr().err
    assert main(["ood", "fit", "--policy", detector["digest"], *words[2:]]) == 2
    assert "is of kind ood_detector; expected initial_policy or snapshot" in capsys.readouterr().err
