"""The stages of a cycle. Each takes ids and returns ids; nothing else crosses a stage boundary.

A stage first asks the ledger for an artifact with its fingerprint (kind, settings and the digests of its inputs) and
returns what it finds; so a cycle that was interrupted is resumed by running it again from the top. How the stages
follow each other is in `flows/cycle.py`; what runs one of them is in `orchestrator/stages/context.py`.
"""

from orchestrator.cycles.record import (
    anything_live,
    check_way_free,
    close_cycle,
    cycle_config,
    cycle_number,
    fresh_comparisons,
    open_cycle,
    open_cycle_id,
)
from orchestrator.stages.comparisons import check_data, freeze_comparisons
from orchestrator.stages.detectors import fit_ood_detector
from orchestrator.stages.elo import measure_elo, what_people_said
from orchestrator.stages.fresh_agreement import check_fresh_agreement
from orchestrator.stages.initial_policy import prepare_initial_policy
from orchestrator.stages.live import live_to_score
from orchestrator.stages.named_inputs import check_named_inputs
from orchestrator.stages.policy import evaluate_policy, evaluations_of, train_policy
from orchestrator.stages.preference_model import (
    check_preference_model,
    pretrain_preference_model,
    train_preference_model,
    train_watcher,
)
from orchestrator.stages.promotion import (
    decide_promotion,
    deploy_initial_policy,
    promote,
    put_before_people,
    refusal,
    what_waits,
    what_was_decided,
)
from orchestrator.stages.prompts import build_prompts, write_prompts
from orchestrator.stages.report import write_report

# In the order of a cycle.
__all__ = [  # noqa: RUF022
    "check_named_inputs",
    "fresh_comparisons",
    "anything_live",
    "open_cycle_id",
    "check_way_free",
    "open_cycle",
    "cycle_config",
    "cycle_number",
    "prepare_initial_policy",
    "deploy_initial_policy",
    "measure_elo",
    "what_people_said",
    "freeze_comparisons",
    "check_data",
    "check_fresh_agreement",
    "pretrain_preference_model",
    "train_preference_model",
    "train_watcher",
    "check_preference_model",
    "build_prompts",
    "write_prompts",
    "train_policy",
    "live_to_score",
    "evaluate_policy",
    "evaluations_of",
    "fit_ood_detector",
    "decide_promotion",
    "what_waits",
    "what_was_decided",
    "refusal",
    "promote",
    "put_before_people",
    "write_report",
    "close_cycle",
]
