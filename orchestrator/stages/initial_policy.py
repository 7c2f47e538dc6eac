"""The initial policy: a Hugging Face model made ready, or a small one pretrained from scratch on given text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.initial_policy.settings import DistillationSetSettings, PretrainSettings, StudentTraining
from models.runtime.files import link_or_copy
from orchestrator.config import DistillSection, InitialPolicySection, PretrainSection, told
from orchestrator.data import named_files
from orchestrator.data.named_files import PROMPT, file_digest, write_prompt, write_text
from orchestrator.errors import ConfigError
from orchestrator.stages import initial_policy
from orchestrator.stages.context import Occasion, StageContext, build, run_job_stage


def from_hugging_face(context: StageContext, section: InitialPolicySection, *, fresh: bool) -> int:
    """Make a Hugging Face folder (or hub model, from the local cache where offline) ready to be tuned."""
    assert section.path is not None
    source = model_folder(section.path, section.revision)

    def write(out: Path) -> Mapping[str, object]:
        files = _model_files(source)
        for file in files:
            link_or_copy(file.resolve(), out / file.name)
        return {"source": section.path, "revision": section.revision, "files": [file.name for file in files]}

    source_id = build(context, "source_model", {"files": _folder_digest(source)}, {}, write, fresh=fresh)
    return run_job_stage(
        context,
        kind="initial_policy",
        job="prepare_policy",
        inputs={"source": source_id},
        settings={},
        fresh=fresh,
    )


def pretrained(context: StageContext, section: PretrainSection, *, fresh: bool) -> int:
    """Pretrain a small model on the dialogues and texts of the configured files."""
    files = [Path(name) for name in section.files]
    text_id = build(
        context,
        "text",
        {"files": [file_digest(file) for file in files]},
        {},
        lambda out: write_text(files, out),
        fresh=fresh,
    )
    return run_job_stage(
        context,
        kind="initial_policy",
        job="pretrain",
        inputs={"text": text_id},
        settings=told(section, PretrainSettings),
        fresh=fresh,
    )


MODEL_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.bin")


def model_folder(path: str, revision: str | None, patterns: Sequence[str] = MODEL_PATTERNS) -> Path:
    """The folder of a Hugging Face model; of one on the hub only the files of these patterns are fetched.

    Raises:
        ConfigError: no such model, or not one of a language model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        _model_files(folder)
        return folder
    if folder.is_absolute() or path.startswith("."):
        raise ConfigError(f"initial_policy.path names {path}, which is no directory. Give a Hugging Face model folder.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=sorted(patterns)))
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"initial_policy.path = {path!r} is neither a directory nor a model that can be had from the hub or its "
            f"local cache ({type(error).__name__}: {first_line}). Download it where there is a network "
            f"(`hf download {path}`), or give the path of a folder."
        ) from None


def _model_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and any(map(file.match, MODEL_PATTERNS)))
    if not any(file.name == "config.json" for file in files):
        raise ConfigError(f"{folder} has no config.json; expected a Hugging Face causal language model.")
    return files


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in _model_files(folder):
        digest.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def prepare_initial_policy(occasion: Occasion, *, fresh: bool = False) -> int:
    """The frozen start of every policy: pretrained here, or a Hugging Face model made ready; and distilled where asked.

    Returns its artifact.
    """
    with StageContext(occasion, "prepare_initial_policy") as context:
        section = context.config.initial_policy
        if section.pretrain is None:
            prepared_id = initial_policy.from_hugging_face(context, section, fresh=fresh)
        else:
            prepared_id = initial_policy.pretrained(context, section.pretrain, fresh=fresh)
        if section.distill is None:
            return prepared_id
        return distilled(context, section, prepared_id, fresh=fresh)


def distilled(context: StageContext, section: InitialPolicySection, student_id: int, *, fresh: bool) -> int:
    """Train the prepared student on what the teacher says after the prompt. Returns the initial policy's artifact."""
    from orchestrator.stages import initial_policy

    distill = section.distill
    assert distill is not None
    if distill.teacher is None:
        teacher_id = student_id
    else:
        source = InitialPolicySection(path=distill.teacher, revision=distill.teacher_revision)
        teacher_id = initial_policy.from_hugging_face(context, source, fresh=fresh)
    file = Path(distill.prompt_file) if distill.prompt_file is not None else PROMPT
    prompt_id = build(
        context,
        "distillation_prompt",
        {"file": file_digest(file), "name": file.stem},
        {},
        lambda out: write_prompt(file, out),
        fresh=fresh,
    )
    files = [Path(name) for name in distill.files]
    text_id = build(
        context,
        "text",
        {"files": [file_digest(name) for name in files]},
        {},
        lambda out: named_files.write_text(files, out),
        fresh=fresh,
    )
    set_id = run_job_stage(
        context,
        kind="distillation_set",
        job="make_distillation_set",
        inputs={"teacher": teacher_id, "prompt": prompt_id, "text": text_id},
        settings=told(distill, DistillationSetSettings),
        fresh=fresh,
    )
    return run_job_stage(
        context,
        kind="initial_policy",
        job="distill_student",
        inputs={"student": student_id, "distillation_set": set_id},
        settings=told(distill, StudentTraining) | {"reference_learning_rate": _reference_rate(section, distill)},
        fresh=fresh,
    )


def _reference_rate(section: InitialPolicySection, distill: DistillSection) -> float:
    """The learning rate that multiples are of: the model's own in pretraining. The configuration has one of the two."""
    if distill.reference_learning_rate is not None:
        return distill.reference_learning_rate
    assert section.pretrain is not None
    return section.pretrain.learning_rate
