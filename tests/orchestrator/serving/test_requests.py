"""What a chat completion request may hold: held against the request schema of the `openai` package, field by field."""

from __future__ import annotations

import typing
from typing import Any

import openai
import pytest
from openai.types import chat
from openai.types.chat import completion_create_params
from pydantic import ValidationError

from orchestrator.serving import harmless
from orchestrator.serving.harmless import Harmless
from orchestrator.serving.schemas import MAX_SEED, ChatMessage, ChatRequest, StreamOptions, TextPart
from tests.orchestrator.serving.tiny_policies import HELLO, Policies, Served, code_of

ASKED: dict[str, Any] = {"model": "policy-live", "messages": HELLO}

# Fields of OpenAI's that ask for another reply whatever they hold, and of which nothing is served.
REFUSED = {"audio": {"voice": "ash", "format": "wav"}, "moderation": {"model": "omni"}, "web_search_options": {}}
REFUSED_IN_MESSAGES = {"audio": {"id": "a"}, "function_call": {"name": "f", "arguments": "{}"}, "name": "Ann"}
REFUSED_ROLES = {"tool", "function"}
REFUSED_PARTS = {"image_url", "input_audio", "file", "refusal"}

# Values at which a field of OpenAI's, or of engines that people come from, asks for what is not served.
TELLING = {
    "frequency_penalty": 0.1,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "presence_penalty": -0.5,
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "stop": "\n",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_logprobs": 2,
    "verbosity": "low",
    # Engines.
    "allowed_token_ids": [1, 2],
    "bad_words": ["no"],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": True},
    "continue_final_message": True,
    "dry_multiplier": 0.8,
    "echo": True,
    "grammar": "root ::= 'a'",
    "guided_choice": ["yes", "no"],
    "guided_json": {"type": "object"},
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "length_penalty": 0.5,
    "logits_processors": ["x"],
    "min_p": 0.05,
    "min_tokens": 4,
    "mirostat": 2,
    "prompt_logprobs": 1,
    "repeat_penalty": 1.1,
    "repetition_penalty": 1.05,
    "skip_special_tokens": False,
    "stop_token_ids": [7],
    "structured_outputs": {"regex": "a+"},
    "top_a": 0.2,
    "top_k": 40,
    "typical_p": 0.9,
    "use_beam_search": True,
    "what_nobody_knows_yet": 1,
    "xtc_probability": 0.5,
}


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({**ASKED, **fields})


def said(**message: Any) -> ChatMessage:
    return request(messages=[message]).messages[0]


def variants(union: Any) -> tuple[Any, ...]:
    return typing.get_args(union) or (union,)


def literal(typed_dict: Any, field: str) -> str:
    """The one value of a field that tells a typed dict from its like."""
    hint = typing.get_type_hints(typed_dict)[field]
    (value,) = typing.get_args(hint)
    return str(value)


def decided(read: set[str], beside: Harmless, refused: set[str]) -> set[str]:
    """Fields that somebody decided about: read, harmless, or refused whatever they hold."""
    assert not read & (beside.whatever | beside.only.keys() | refused), "a field stands in two lists"
    assert not beside.whatever & (beside.only.keys() | refused)
    return read | beside.whatever | beside.only.keys() | refused


def test_every_field_of_the_openai_package_is_decided_about() -> None:
    theirs = {
        *completion_create_params.CompletionCreateParamsNonStreaming.__annotations__,
        *completion_create_params.CompletionCreateParamsStreaming.__annotations__,
    }
    assert {"messages", "model", "stream", "temperature", "tools"} <= theirs
    ours = decided(set(ChatRequest.model_fields), harmless.REQUEST, set(REFUSED))
    assert theirs - ours == set(), "the package gained fields: serve them, or list them as harmless or as refused"
    assert set(REFUSED) <= theirs


def test_every_role_field_and_part_of_a_message_is_decided_about() -> None:
    roles = {literal(one, "role"): one for one in variants(chat.ChatCompletionMessageParam)}
    taken = set(typing.get_args(ChatMessage.model_fields["role"].annotation))
    assert roles.keys() == taken | REFUSED_ROLES
    ours = decided(set(ChatMessage.model_fields), harmless.MESSAGE, set(REFUSED_IN_MESSAGES))
    for role in taken:
        assert set(roles[role].__annotations__) - ours == set(), role
    parts = {literal(one, "type"): one for one in variants(chat.ChatCompletionContentPartParam)}
    assert parts.keys() | {"refusal"} == {"text"} | REFUSED_PARTS
    ours = decided(set(TextPart.model_fields), harmless.TEXT_PART, set())
    assert set(parts["text"].__annotations__) - ours == set()


def test_every_option_of_a_stream_is_decided_about() -> None:
    theirs = set(chat.ChatCompletionStreamOptionsParam.__annotations__)
    assert theirs - decided(set(StreamOptions.model_fields), harmless.STREAM_OPTIONS, set()) == set()


@pytest.mark.parametrize("field", sorted(harmless.REQUEST.whatever | harmless.REQUEST.only.keys() | REFUSED.keys()))
def test_null_is_absent(field: str) -> None:
    assert request(**{field: None}) == request()


@pytest.mark.parametrize("field", sorted(ChatRequest.model_fields.keys() - {"model", "messages"}))
def test_null_of_a_field_that_is_served_is_its_default(field: str) -> None:
    assert request(**{field: None}) == request()


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in harmless.REQUEST.only.items() for value in values]
)
def test_a_default_that_is_spelt_out_is_harmless(field: str, value: Any) -> None:
    request(**{field: value})


@pytest.mark.parametrize(("field", "value"), [*REFUSED.items(), *TELLING.items()])
def test_what_would_change_a_reply_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{field} can't be used with this server .*leave it out"):
        request(**{field: value})


def test_every_field_with_harmless_values_has_others_that_are_refused() -> None:
    only = harmless.REQUEST.only.keys()
    untold = {"add_generation_prompt", "add_special_tokens", "documents", "dynatemp_range", "no_repeat_ngram_size",
              "num_beams", "suffix", "tfs_z", "typical"}  # fmt: skip
    assert only - TELLING.keys() == untold
    for field in untold:
        with pytest.raises(ValidationError, match=f"{field} can't be used"):
            request(**{field: "another"})


def test_a_refusal_does_not_repeat_a_long_value() -> None:
    with pytest.raises(ValidationError) as refused:
        request(guided_regex="a" * 10_000)
    assert len(str(refused.value.errors()[0]["msg"])) < 200


def test_objects_are_compared_without_their_nulls() -> None:
    request(response_format={"type": "text", "json_schema": None})
    with pytest.raises(ValidationError, match="response_format can't be used"):
        request(response_format={"type": "text", "strict": True})


@pytest.mark.parametrize(("field", "value"), REFUSED_IN_MESSAGES.items())
def test_messages_hold_nothing_that_would_be_passed_over(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"{field} can't be used with this server"):
        said(role="assistant", content="x", **{field: value})
    assert said(role="assistant", content="x", **{field: None}).text() == "x"


def test_a_reply_comes_back_as_the_openai_package_gave_it() -> None:
    given = chat.ChatCompletionMessage(role="assistant", content="Hello.", annotations=[])
    assert said(**given.model_dump()).text() == "Hello."
    assert said(role="assistant", content=None, tool_calls=[]).text() == ""
    with pytest.raises(ValidationError, match="content is missing"):
        said(role="user", content=None)


def test_content_comes_in_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]
    assert said(role="user", content=parts).text() == "one two"
    for type_ in REFUSED_PARTS:
        with pytest.raises(ValidationError, match="Input should be 'text'"):
            said(role="user", content=[{"type": type_, type_: "x"}])
    with pytest.raises(ValidationError, match="weight can't be used"):
        said(role="user", content=[{"type": "text", "text": "x", "weight": 2}])


def test_developer_is_system(served: Served) -> None:
    texts = []
    for role in ("developer", "system"):
        messages = [{"role": role, "content": "Be brief."}, *HELLO]
        texts.append(served.chat(seed=2, messages=messages).json()["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    assert texts[0] != served.chat(seed=2).json()["choices"][0]["message"]["content"]


def test_requests_are_refused_and_taken_over_http(served: Served) -> None:
    refused = served.chat(top_k=40, min_p=0.1)
    assert code_of(refused) == (422, "invalid_request")
    assert "top_k can't be used" in refused.json()["error"]["message"]
    assert "min_p can't be used" in refused.json()["error"]["message"]
    plain = served.chat(seed=3).json()["choices"]
    spelt_out = served.chat(
        seed=3, n=None, temperature=None, top_p=None, stream=None, stop=None, presence_penalty=0, logprobs=False,
        tool_choice="none", response_format={"type": "text"}, user="me", store=True, metadata={"a": "b"},
    )  # fmt: skip
    assert spelt_out.json()["choices"] == plain


def texts_of(answer: Any) -> list[str]:
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def test_a_negative_seed_is_a_seed_and_minus_one_draws_one(served: Served) -> None:
    drawn = {texts_of(served.chat(seed=-1, max_tokens=40))[0] for _ in range(3)}
    assert len(drawn) == 3
    first, second = (texts_of(served.chat(seed=-5, n=2, max_tokens=40)) for _ in range(2))
    assert first == second
    assert first[1] == texts_of(served.chat(seed=-4, max_tokens=40))[0]
    assert first[0] != texts_of(served.chat(seed=5, max_tokens=40))[0]
    for extreme in (-MAX_SEED - 1, MAX_SEED):
        assert len(texts_of(served.chat(seed=extreme, n=2))) == 2
        assert code_of(served.chat(seed=extreme + (1 if extreme > 0 else -1))) == (422, "invalid_request")


def test_one_model_is_told_of_by_every_name_that_a_request_may_use(
    served: Served, policies: Policies, live: str
) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none needed", max_retries=0) as client:
        listed = {model.id: model for model in client.models.list()}
        assert client.models.retrieve("policy-live") == listed["policy-live"]
        assert client.models.retrieve(live) == listed[live]
        assert client.models.retrieve(live[:15]) == listed[live]
        # Known, and not in memory: a request that names it would load it. Looking at it does not.
        other = policies.digests[1]
        assert client.models.retrieve(other[:20]).id == other
        assert other not in {model.id for model in client.models.list()}
        for unknown in ("gpt-4", "sha256:000000", "policy-live2"):
            with pytest.raises(openai.NotFoundError) as missing:
                client.models.retrieve(unknown)
            assert missing.value.code == "model_not_found"
            assert missing.value.type == "invalid_request_error"


def test_no_model_is_told_of_before_a_policy_is_live(serve: Any, database: Any) -> None:
    with serve() as server:
        server.wait_for(lambda health: health["message"] == "no policy is live")
        assert code_of(server.client.get("/v1/models/policy-live")) == (404, "model_not_found")
