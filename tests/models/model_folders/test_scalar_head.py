"""A score on the trunk of every family: transformers' class where it has one, and its pattern where it has none."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    CLIPVisionConfig,
    LlamaConfig,
)

from models.model_folders.scalar_head import NoScalarHeadError, load_scorer, scorer_class
from tests.models.sampling.tiny_models import cohere, granite, lfm2, llama

WITHOUT_A_CLASS = {"cohere": cohere, "granite": granite, "lfm 2": lfm2}


@pytest.mark.parametrize("name", WITHOUT_A_CLASS)
def test_a_family_without_a_class_gets_a_score_on_its_own_trunk(name, tmp_path):
    policy = WITHOUT_A_CLASS[name]()
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_config(policy.config)
    policy.save_pretrained(tmp_path / "policy")
    scorer, info = load_scorer(str(tmp_path / "policy"), num_labels=1, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert type(scorer).__name__.endswith("ForSequenceClassification")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        scorer.eval().score.weight.normal_()
        states = policy.base_model(input_ids=ids).last_hidden_state
        assert torch.equal(scorer.base_model(input_ids=ids).last_hidden_state, states)
        expected = states[0, -1] @ scorer.score.weight[0]
        assert torch.allclose(scorer(input_ids=ids).logits[0, 0], expected, atol=1e-5)
    # Written and read again it is the same model.
    scorer.save_pretrained(tmp_path / "scorer")
    again, info = load_scorer(str(tmp_path / "scorer"), output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(again.score.weight, scorer.score.weight)


def test_a_family_with_a_class_keeps_it():
    assert scorer_class(LlamaConfig()).__name__ == "LlamaForSequenceClassification"
    assert type(llama().config) is LlamaConfig


def test_what_reads_no_text_is_refused_by_name():
    class Unknown(CLIPVisionConfig):
        model_type = "of_tomorrow"

    with pytest.raises(NoScalarHeadError, match="no trunk of the type 'of_tomorrow'"):
        scorer_class(Unknown())
