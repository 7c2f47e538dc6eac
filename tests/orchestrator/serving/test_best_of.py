"""Best of k: the reply that the preference model prefers, of k that were sampled with known seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.chat.format import ChatFormat
from models.model_folders.saving import save_model
from models.preference.model import PreferenceModel, fresh_preference_model
from models.sampling.engine import SamplingParams
from orchestrator.conversations import contestants, pairings
from tests.orchestrator.serving.tiny_policies import HELLO, Policies, Serve, Served, code_of, write_policy
from tests.running import add_artifact

Database = Callable[[], Session]
K = 4


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> list[str]:
    """Digests of two preference models with heads of their own."""
    initial = write_policy(tmp_path_factory.mktemp("judge"), 7)
    chat = ChatFormat.load(initial)
    digests = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"judge-{seed}")
        save_model(fresh_preference_model(initial, chat, seed, torch.device("cpu")), folder, chat, "")
        digests.append(policies.store.publish(folder).digest)
    return digests


@pytest.fixture
def judge(judges: list[str], database: Database) -> str:
    """The first of them, in the database."""
    with database() as session, session.begin():
        for digest in judges:
            add_artifact(session, digest, digest=digest, kind="preference_model")
    return judges[0]


def best(policies: Policies, live: str, judge: str, seed: int) -> tuple[str, list[float]]:
    """The best reply by the models alone, and every score."""
    params = [SamplingParams(12, 1.0, 1.0, seed + i) for i in range(K)]
    texts = [policies.completion(live, HELLO, one)[0] for one in params]
    scorer = PreferenceModel.load(policies.store.fetch(judge))
    scores = scorer.score([[*HELLO, {"role": "assistant", "content": text}] for text in texts])
    return texts[scores.index(max(scores))], scores


def test_the_best_of_k_is_the_best_by_the_models_alone(
    served: Served, policies: Policies, live: str, judges: list[str], judge: str
) -> None:
    chosen_by = set()
    for digest in judges:
        answer = served.chat(seed=5, n=2, best_of=K, preference_model=digest).json()
        for index, seed in enumerate((5, 5 + K)):
            text, scores = best(policies, live, digest, seed)
            choice = answer["choices"][index]
            assert choice["message"]["content"] == text
            told = choice["best_of"]
            assert (told["k"], told["preference_model"]) == (K, digest)
            assert told["scores"] == pytest.approx(scores, abs=1e-5)
            assert told["score"] == max(told["scores"])
            assert told["seed"] == seed + told["scores"].index(told["score"])
            chosen_by.add(told["seed"])
        assert answer["system_fingerprint"] == live
        assert answer["usage"]["completion_tokens"] >= sum(choice["reply_tokens"] for choice in answer["choices"])
    # Otherwise the choice would say nothing: not always the first, and the two judges differ.
    assert len(chosen_by) > 2


def test_a_stream_gives_each_reply_in_one_piece(served: Served, judge: str) -> None:
    whole = served.chat(seed=5, n=2, best_of=K, preference_model=judge).json()
    body = served.chat(seed=5, n=2, best_of=K, preference_model=judge, stream=True).text
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    told = [(c["index"], c["delta"]["content"], c["best_of"]["seed"]) for chunk in chunks for c in chunk["choices"]]
    assert told == [(c["index"], c["message"]["content"], c["best_of"]["seed"]) for c in whole["choices"]]
    assert body.rstrip().endswith("data: [DONE]")


def test_what_cannot_be_chosen_is_refused(served: Served, live: str, judge: str) -> None:
    assert code_of(served.chat(best_of=4)) == (422, "invalid_request")
    assert code_of(served.chat(best_of=65, preference_model=judge)) == (422, "invalid_request")
    assert code_of(served.chat(best_of=4, preference_model="sha256:" + "0" * 64)) == (404, "model_not_found")
    assert code_of(served.chat(best_of=4, preference_model=live)) == (404, "model_not_found")
    # One of one needs nobody who chooses.
    assert "best_of" not in served.chat(best_of=1).json()["choices"][0]


def test_replies_that_are_chosen_from_count_towards_the_limit(serve: Serve, live: str, judge: str) -> None:
    with serve(max_replies=7) as server:
        server.wait_for(lambda health: health["live"] == live)
        assert code_of(server.chat(n=2, best_of=4, preference_model=judge)) == (503, "overloaded")
        assert server.chat(best_of=4, preference_model=judge).status_code == 200


def test_a_broken_preference_model_fails_the_request_and_not_the_server(
    served: Served, database: Database, policies: Policies, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    digest = policies.store.publish(tmp_path).digest
    with database() as session, session.begin():
        add_artifact(session, digest, digest=digest, kind="preference_model")
    assert code_of(served.chat(best_of=2, preference_model=digest)) == (503, "preference_model_unusable")
    assert served.chat().status_code == 200


def test_the_pairing_table_says_which_preference_models_stay(
    serve: Serve, database: Database, live: str, judges: list[str], judge: str
) -> None:
    with database() as session, session.begin():
        kept = contestants.add_best_of(session, "best", live, judge, K)
        pairings.open_pairing(session, "model_comparison", kept.id, kept.id)
    with serve() as server:
        server.wait_for(lambda health: health["preference_models"] == [judge])
        assert server.chat(best_of=2, preference_model=judges[1]).status_code == 200
        assert sorted(server.health()["preference_models"]) == sorted(judges)
        with database() as session, session.begin():
            pairings.end_pairing(session, session.scalars(select(t.Pairing.id)).one())
        # Of those that nothing needs, the one used last stays.
        server.wait_for(lambda health: health["preference_models"] == [judges[1]])
