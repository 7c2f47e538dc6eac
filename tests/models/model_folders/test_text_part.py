"""Models that also see: their language part by itself, and what has none."""

from __future__ import annotations

import pytest
import torch

from models.model_folders.text_part import NoTextPartError, is_composite, load_text_part, text_part
from tests.models.model_folders.composite_models import gemma3, llava, mistral3
from tests.models.sampling.tiny_models import llama


@pytest.mark.parametrize("make", [gemma3, mistral3, llava])
def test_the_language_part_says_by_itself_what_it_says_within_the_whole(make, tmp_path):
    torch.manual_seed(0)
    whole = make().eval()
    whole.save_pretrained(tmp_path)
    assert is_composite(whole.config)
    alone = load_text_part(str(tmp_path))
    assert not is_composite(alone.config)
    assert type(alone).__name__.endswith("ForCausalLM")
    ids = torch.randint(2, 60, (2, 9))
    with torch.no_grad():
        expected, found = whole(input_ids=ids).logits, alone(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    # It can be trained: the whole of Gemma 3 asks then where the pictures are.
    alone.train()(input_ids=ids).logits.sum().backward()


def test_a_model_whose_parts_do_not_fit_is_refused(monkeypatch):
    whole = gemma3().eval()
    with torch.no_grad():
        whole.get_output_embeddings().weight.mul_(3)
    forward = whole.forward

    def other(**inputs):
        output = forward(**inputs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(whole, "forward", other)
    with pytest.raises(NoTextPartError, match=r"says something else by itself .* differ by .* nats"):
        text_part(whole)


def test_a_language_model_alone_is_no_composite():
    assert not is_composite(llama().config)
