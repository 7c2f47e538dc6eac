"""The initial policy: a Hugging Face model made ready, or a small one pretrained from scratch on given text."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.config import InitialPolicySection, PretrainSection
from orchestrator.data.formats.reading import check_named_gzip
from orchestrator.data.freeze import file_digest
from orchestrator.errors import ConfigError, ImportFileError
from orchestrator.stages.context import StageContext, build, run_job_stage


def from_hugging_face(context: StageContext, section: InitialPolicySection, *, fresh: bool) -> int:
    """Make a Hugging Face folder (or hub model, from the local cache where offline) ready to be tuned."""
    assert section.path is not None
    source = model_folder(section.path, section.revision)

    def write(out: Path) -> dict[str, Any]:
        files = _model_files(source)
        for file in files:
            _link(file.resolve(), out / file.name)
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
        settings=section.model_dump(exclude={"files"}),
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


def _link(source: Path, target: Path) -> None:
    """A hard link where possible, so that a large model is not copied twice on its way to the store."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in _model_files(folder):
        digest.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def write_text(files: list[Path], out: Path) -> dict[str, Any]:
    seen: set[bytes] = set()
    num_texts = num_repeats = 0
    with (out / "dialogues.jsonl").open("w", encoding="utf-8") as target:
        for file in files:
            for record in _records(file):
                line = json.dumps(record, ensure_ascii=False)
                key = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if key in seen:
                    num_repeats += 1
                    continue
                seen.add(key)
                target.write(line + "\n")
                num_texts += 1
    if num_texts == 0:
        raise ConfigError(f"initial_policy.pretrain.files hold no text: {', '.join(map(str, files))}.")
    return {"num_texts": num_texts, "num_repeats": num_repeats}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Texts of a file: plain text in pieces, JSONL by record; of a comparison both sides alike."""
    from orchestrator.data.formats.hh import split_messages

    name = file.name.removesuffix(".gz")
    with _opened(file) as lines:
        if not name.endswith(".jsonl"):
            yield from _paragraphs(lines)
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{file}, line {number}: not JSON ({error}); expected an object per line.") from None
            if not isinstance(record, dict):
                raise ConfigError(f"{file}, line {number}: found {type(record).__name__}; expected an object per line.")
            if "messages" in record:
                yield {"messages": record["messages"]}
            elif "text" in record:
                yield {"text": record["text"]}
            elif "chosen" in record and "rejected" in record:
                for side in ("chosen", "rejected"):
                    if not (isinstance(record[side], str) and (messages := split_messages(record[side]))):
                        raise ConfigError(
                            f"{file}, line {number}: {side} is no dialogue; expected one text of turns after "
                            "'\\n\\nHuman:' and '\\n\\nAssistant:'."
                        )
                    yield {"messages": messages}
            else:
                raise ConfigError(
                    f"{file}, line {number}: found keys {sorted(record)}; "
                    "expected messages, text, or chosen and rejected."
                )


@contextmanager
def _opened(file: Path) -> Iterator[IO[str]]:
    """The file as UTF-8 text, unpacked where its name says that it is gzip.

    Raises:
        ConfigError: it can't be read to its end as what its name says.
    """
    try:
        if file.suffix == ".gz":
            with file.open("rb") as raw:
                check_named_gzip(file, raw.read(2))
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            yield lines
    except ImportFileError as error:
        raise ConfigError(f"{error} The configuration names it.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read ({error}); the configuration names it. Fetch it again.") from None


PARAGRAPH_CHARACTERS = 2000


def _paragraphs(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    held = ""
    for line in lines:
        held += line
        if len(held) >= PARAGRAPH_CHARACTERS:
            yield {"text": held}
            held = ""
    if held.strip():
        yield {"text": held}
