"""Detectors of requests far from what a policy was trained to answer: in a cycle, and by hand.

The job is `models/jobs/fit_ood_detector.py`; `serve-policy --gate DIGEST` puts the artifact before the policies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from db import tables as t
from orchestrator.config import CycleConfig, InitialPolicySection, OodSection
from orchestrator.data.freeze import file_digest
from orchestrator.errors import ConfigError
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


def detector_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows of the cycle report: what the detector that the cycle fitted is worth, and how it comes before the policies.

    `found` are the results of the job with the artifact's `digest`; None where the cycle fitted none.
    """
    if found is None:
        return []
    alarms = found["false_alarms"]
    rows = [
        (
            "Detector of far requests",
            f"{found['kind']} on layer {found['layer']}; {_share(alarms)} of unseen prompts of home lie beyond its "
            f"threshold (n = {alarms['n']})",
        )
    ]
    if "others" in found:
        others = found["others"]
        rows.append(
            (
                "… prompts of the other kind",
                f"{_share(others)} beyond it (n = {others['n']}); AUROC {others['auroc']:.3f}, of the length alone "
                f"{others['length_auroc']:.3f}",
            )
        )
    if "examples" in found:
        told = found["examples"]
        auroc = told["auroc_by_layer"].get(str(found["layer"]))
        rows.append(
            (
                "… examples",
                f"{'AUROC not measured' if auroc is None else f'AUROC {auroc:.3f}'}, of the length alone "
                f"{told['length_auroc']:.3f}",
            )
        )
    return [*rows, ("… before the policies", f"`orchestrator serve-policy --gate {found['digest']}`")]


def _share(numbers: dict[str, Any]) -> str:
    low, high = numbers["ci"]
    return f"{numbers['share']:.1%} [{low:.1%}, {high:.1%}]"


def _fit(context: StageContext, section: OodSection, policy_id: int, prompts_id: int, fresh: bool) -> int:
    inputs = {"policy": policy_id, "prompts": prompts_id}
    if section.examples_file is not None:
        inputs["examples"] = _prompts_of_file(context, Path(section.examples_file), "harmful", fresh)
    return run_job_stage(
        context,
        kind="ood_detector",
        job="fit_ood_detector",
        inputs=inputs,
        settings=section.model_dump(exclude={"examples_file"}),
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


def write_prompts(file: Path, kind: str, out: Path) -> dict[str, Any]:
    """Write `prompts.jsonl` from a file: .txt has a prompt a line, JSONL has {prompt} or {messages}, and maybe {kind}.

    Raises:
        ConfigError: a line is no prompt, or there is none.
    """
    seen: set[str] = set()
    with (out / "prompts.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for found, messages in _read(file, kind):
            canonical = json.dumps([found, messages], sort_keys=True)
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                record = {"id": digest, "kind": found, "messages": messages}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    if not seen:
        raise ConfigError(f"{file} holds no prompts; expected one a line.")
    return {"num_prompts": len(seen), "file": file.name}


def _read(file: Path, kind: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    try:
        opened = file.open(encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}).") from None
    with opened:
        for number, line in enumerate(opened, start=1):
            text = line.strip()
            if not text:
                continue
            if file.suffix != ".jsonl":
                yield kind, [{"role": "user", "content": text}]
                continue
            try:
                record = json.loads(text)
                given = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
                messages = [{"role": str(item["role"]), "content": str(item["content"])} for item in given]
                if messages[-1]["role"] != "user":
                    raise ValueError("the last message is not the user's")
                yield str(record.get("kind", kind)), messages
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{file}, line {number} is no prompt ({type(error).__name__}: {error}); expected "
                    '{"prompt": "..."} or {"messages": [..., {"role": "user", "content": "..."}]}.'
                ) from None
