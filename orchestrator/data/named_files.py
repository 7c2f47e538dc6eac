"""Files that a configuration names: their digests, and what training jobs read of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.data.formats.reading import check_named_gzip
from orchestrator.errors import ConfigError, ImportFileError


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file that the configuration names.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}); the configuration names it.") from None


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
    try:
        with opened_text(file) as lines:
            yield from _texts(file, lines)
    except ImportFileError as error:
        raise ConfigError(f"{error} The configuration names it.") from None


def _texts(file: Path, lines: IO[str]) -> Iterator[dict[str, Any]]:
    """Texts of a file: plain text in pieces, JSONL by record; of a comparison both sides alike."""
    from orchestrator.data.formats.hh import split_messages

    if not file.name.removesuffix(".gz").endswith(".jsonl"):
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
                f"{file}, line {number}: found keys {sorted(record)}; expected messages, text, or chosen and rejected."
            )


@contextmanager
def opened_text(file: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """A file as UTF-8 text without its byte order mark, unpacked where it is gzip; `newline` is as for `open`.

    Raises:
        ImportFileError: it can't be read to its end, or is not what its name says.
    """
    try:
        with file.open("rb") as raw:
            zipped = check_named_gzip(file, raw.peek(2)[:2])
            unpacked = gzip.GzipFile(fileobj=raw) if zipped else raw
            with io.TextIOWrapper(unpacked, "utf-8-sig", newline=newline) as lines:
                yield lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ImportFileError(f"{file}: the gzip data is damaged ({error}). Fetch the file again.") from None
    except OSError as error:
        raise ImportFileError(f"{file}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise ImportFileError(f"{file}: byte {found:#04x} is not UTF-8. Convert the file.") from None


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


PROMPT = Path(__file__).resolve().parent / "prompts" / "hhh-1.md"
_TURN = re.compile(r"^(Human|Assistant):[ \t]*", re.MULTILINE)
_BREAK = re.compile(r"^---[ \t]*$", re.MULTILINE)
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_prompt(text: str) -> list[dict[str, str]]:
    """The messages of a prompt: what stands before the first `Human:` is a system message, the examples are turns.

    Lines of three dashes part the examples. Lines of a paragraph are joined, so that a file may be wrapped.

    Raises:
        ConfigError: an example that does not begin with the human or does not end with the assistant; an empty prompt.
    """
    messages: list[dict[str, str]] = []
    for number, part in enumerate(_BREAK.split(text)):
        turns = list(_TURN.finditer(part))
        before = _unwrapped(part[: turns[0].start()] if turns else part)
        if before and number > 0:
            raise ConfigError(f"Example {number} of the prompt begins with {before[:40]!r}; expected Human:.")
        if before:
            messages.append({"role": "system", "content": before})
        ends = [*(turn.start() for turn in turns[1:]), len(part)][: len(turns)]
        roles = [turn.group(1) for turn in turns]
        if roles != ["Human", "Assistant"] * (len(roles) // 2):
            raise ConfigError(
                f"Example {number} of the prompt has the turns {', '.join(roles)}; expected Human and Assistant in "
                "turn, the assistant last."
            )
        for turn, end in zip(turns, ends, strict=True):
            messages.append({"role": _ROLES[turn.group(1)], "content": _unwrapped(part[turn.end() : end])})
    if not messages:
        raise ConfigError("The prompt is empty; expected a text, and examples after Human: and Assistant:.")
    return messages


def _unwrapped(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def write_prompt(file: Path, out: Path) -> dict[str, Any]:
    """Write `prompt.json`: the messages, and a version made of the file's name and digest."""
    text = file.read_text(encoding="utf-8")
    version = f"{file.stem} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    record = {"version": version, "messages": parse_prompt(text)}
    (out / "prompt.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"version": version, "num_messages": len(record["messages"])}
