"""Job: fit an out-of-distribution detector on a policy's hidden states of the prompts that it was trained to answer.

    python -m models.jobs.fit_ood_detector --spec spec.json --out DIR
    {"job": "fit_ood_detector", "inputs": {"policy": "...", "prompts": "..."}, "settings": {"detector": "relative"}}

Inputs: `policy` (a prepared policy's folder), `prompts` (a prompt set: prompts.jsonl), and where there are any,
`examples` (prompts.jsonl of what the detector should find). The result is what `models/detectors/detector.py` loads.
"""

from __future__ import annotations

import json
from pathlib import Path

from models.chat.format import ChatFormat, ChatFormatError, Message
from models.detectors.detector import save_detector
from models.detectors.fitting import fit_detector
from models.detectors.settings import OodSettings
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job, JobError, main
from models.runtime.results import result_to_json
from models.runtime.settings import settings_from

NAME = "fit_ood_detector"
PROMPTS_FILE = "prompts.jsonl"


def run(job: Job) -> None:
    """Fit the detector and publish it.

    Raises:
        JobError: prompts that can't be read, too few of them, a layer that the model lacks, no examples where needed.
    """
    settings = settings_from(OodSettings, job.settings)
    prompts = read_prompts(job.input("prompts"))
    examples = read_prompts(job.input("examples")) if "examples" in job.inputs else []
    policy = job.input("policy")
    try:
        chat = ChatFormat.load(policy)
        model = load_causal_lm(policy, device=job.device)
        job.progress(0, 1, "hidden states")
        fitted = fit_detector(
            model,
            chat,
            [messages for kind, messages in prompts if kind == settings.home],
            settings,
            examples=[messages for _, messages in examples],
            others=[messages for kind, messages in prompts if kind != settings.home],
            seed=job.seed,
        )
    except (ChatFormatError, ValueError) as error:
        raise JobError(f"No detector: {error}. The prompts are those of kind {settings.home!r} in the set.") from error
    description = {
        "kind": settings.detector,
        "layer": fitted.layer,
        "threshold": fitted.threshold,
        "quantile": settings.quantile,
        "home": settings.home,
    }
    job.publish(
        lambda folder: save_detector(model, chat, fitted.statistics, description, folder),
        result_to_json(fitted.results),
    )


def read_prompts(folder: Path) -> list[tuple[str, list[Message]]]:
    """(kind, messages) of each line of prompts.jsonl, in the order of the file.

    Raises:
        JobError: no file, no line, or one of another shape.
    """
    path = folder / PROMPTS_FILE
    if not path.exists():
        raise JobError(f"{folder} has no {PROMPTS_FILE}; expected a prompt set.")
    prompts = []
    # newline: a text may hold U+2028, which is no end of a JSON line.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                messages = [Message(role=item["role"], content=item["content"]) for item in record["messages"]]
                prompts.append((str(record["kind"]), messages))
            except (ValueError, KeyError, TypeError) as error:
                raise JobError(f"{path}, line {number} is no prompt ({error!r}). Build the set again.") from error
    if not prompts:
        raise JobError(f"{path} holds no prompt; expected at least 8.")
    return prompts


if __name__ == "__main__":
    main(NAME, run)
