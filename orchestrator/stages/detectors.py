"""Detectors of requests far from what a policy was trained to answer: in a cycle, and by hand.

The job is `models/jobs/fit_ood_detector.py`; `serve-policy --detector DIGEST` puts the artifact before the policies.
"""

from __future__ import annotations

from pathlib import Path

from db import tables as t
from models.detectors.settings import OodSettings
from orchestrator.config import CycleConfig, InitialPolicySection, OodSection, told
from orchestrator.data.named_files import file_digest, write_prompts
from orchestrator.stages.context import StageContext, build, run_job_stage
from orchestrator.store import ledger

# What has hidden states to read.
POLICIES = ("initial_policy", "snapshot")


def fit_ood_detector(cycle_id: int, policy_id: int, prompt_set_id: int, *, fresh: bool = False) -> int:
    """Fit the detector that the cycle's configuration asks for. Returns its artifact."""
    with StageContext(cycle_id, "fit_ood_detector") as context:
        return _fit(context, context.config.ood or OodSection(), policy_id, prompt_set_id, fresh)


def fit_by_hand(
    section: OodSection,
    *,
    policy: str | None = None,
    prompts: str | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> t.Artifact:
    """Fit a detector outside of any cycle; by default of the newest initial policy and the newest prompt set.

    `policy` names an artifact (id or digest), `prompts` a prompt set or a file of prompts.

    Raises:
        ArtifactError: no such artifact, one of another kind, or none yet.
        ConfigError: a file of prompts can't be read.
    """
    # A configuration of nothing but the detector's part; the policy is one that is there already.
    occasion = CycleConfig(seed=seed, initial_policy=InitialPolicySection(path="by hand"), ood=section)
    with StageContext(occasion, "fit_ood_detector") as context:
        policy_id = _named(context, policy, POLICIES, "initial_policy")
        if prompts is not None and Path(prompts).is_file():
            prompts_id = _prompts_of_file(context, Path(prompts), section.home, fresh)
        else:
            prompts_id = _named(context, prompts, ("prompt_set", "ood_prompts"), "prompt_set")
        return context.artifact(_fit(context, section, policy_id, prompts_id, fresh))


def _fit(context: StageContext, section: OodSection, policy_id: int, prompts_id: int, fresh: bool) -> int:
    inputs = {"policy": policy_id, "prompts": prompts_id}
    if section.examples_file is not None:
        inputs["examples"] = _prompts_of_file(context, Path(section.examples_file), "harmful", fresh)
    return run_job_stage(
        context,
        kind="ood_detector",
        job="fit_ood_detector",
        inputs=inputs,
        settings=told(section, OodSettings),
        fresh=fresh,
    )


def _named(context: StageContext, reference: str | None, kinds: tuple[str, ...], newest: str) -> int:
    """The artifact that is named, or the newest of the kind `newest`."""
    nothing = f"There is no {newest} yet; a cycle makes one, or name what to use."
    with context.session() as session:
        return ledger.named_or_newest(session, reference, kinds, newest=(newest,), nothing=nothing).id


def _prompts_of_file(context: StageContext, file: Path, kind: str, fresh: bool) -> int:
    """The prompts of a file as an artifact, so that lineage knows them."""
    settings = {"file": file_digest(file), "kind": kind}
    return build(context, "ood_prompts", settings, {}, lambda out: write_prompts(file, kind, out), fresh=fresh)
