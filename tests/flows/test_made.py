"""What a flow made elsewhere is put together from the rows of its stages."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from flows.made import Evaluated, PreferenceModels, TrainedPolicy, WrittenPrompts
from flows.training import GPU_FLOWS


def test_each_class_knows_its_stage_among_those_of_the_flow() -> None:
    rows = {"pretrain_preference_model": 1, "train_preference_model": 2, "check_preference_model": 3}
    assert PreferenceModels.by_stage(rows) == PreferenceModels(2, None)
    assert PreferenceModels.by_stage(rows | {"train_watcher": 4}) == PreferenceModels(2, 4)
    assert WrittenPrompts.by_stage({"write_prompts": 5}).prompt_set_id == 5
    # The initial policy may be scored beside PPO.
    assert TrainedPolicy.by_stage({"evaluate_policy": 6, "train_policy": 7}).snapshot_id == 7
    assert Evaluated.by_stage({"evaluate_best_of_16": 8, "evaluate_policy": 9}).evaluation_id == 9


@pytest.mark.parametrize("gpu_flow", GPU_FLOWS, ids=lambda gpu_flow: gpu_flow.name)
def test_every_gpu_flow_says_in_its_signature_what_it_makes(gpu_flow) -> None:
    assert callable(get_type_hints(gpu_flow.fn)["return"].by_stage)
