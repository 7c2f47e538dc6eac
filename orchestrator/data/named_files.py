"""Files that a configuration names: their digests, and what training jobs read of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.data.formats import hh
from orchestrator.data.formats.messages import content_of, messages_of
from orchestrator.data.formats.reading import HEAD_BYTES, RecordFile, check_kind
from orchestrator.data.formats.records import Message, RawRecord, Refused, load_object, member
from orchestrator.data.formats.sides import prompt_of
from orchestrator.errors import ConfigError, ImportFileError

JSON_SUFFIXES = (".jsonl", ".json")


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


def records_of(file: Path, expected: str, *, check: bool = True) -> Iterator[tuple[str, RawRecord]]:
    """The JSON objects of a file that the configuration names, each with where it stands: JSON Lines or one array.

    Args:
        expected: What a record should be, for the error of one that is something else.
        check: Whether texts that Postgres could not hold are refused.

    Raises:
        ConfigError: the file can't be read to its end, or a record is no object.
    """
    try:
        with RecordFile(file) as records:
            for raw in records:
                where = f"{file}, line {raw.line}"
                try:
                    record = load_object(raw.text, check=check)
                except Refused as refused:
                    raise unexpected(where, refused, expected) from None
                yield where, record
    except ImportFileError as error:
        raise ConfigError(f"{error} The configuration names it.") from None


def unexpected(where: str, found: Exception | str, expected: str) -> ConfigError:
    """The error of a record that is not what it should be."""
    said = f"{found.reason}: {found.detail}" if isinstance(found, Refused) else str(found)
    return ConfigError(f"{where}: {said}; expected {expected}. The configuration names this file; correct it.")


def suffix_of(file: Path) -> str:
    """The end of a file's name in lower case, .gz aside."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def prompt_messages(record: RawRecord, where: str, expected: str) -> list[Message]:
    """The messages of a record that asks: `messages`, or `prompt` as a text, as hh-rlhf's text or as messages.

    Raises:
        ConfigError: it has neither, or the last message is not the user's.
    """
    try:
        if record.get("messages"):
            messages = messages_of(member(record, "messages", list), "messages")
        else:
            prompt = member(record, "prompt", (str, list, dict))
            messages = prompt_of(prompt) or [{"role": "user", "content": content_of(record, "prompt")}]
        if messages[-1]["role"] != "user":
            raise Refused("no_user_message", f"the last message is the {messages[-1]['role']}'s, not the user's")
    except Refused as refused:
        raise unexpected(where, refused, expected) from None
    return messages


PROMPT_RECORD = '{"prompt": "..."} or {"messages": [..., {"role": "user", "content": "..."}]}'


def write_prompts(file: Path, kind: str, out: Path) -> dict[str, Any]:
    """Write `prompts.jsonl` from a file: .txt has a prompt a line, JSON {prompt} or {messages}, and maybe {kind}.

    Raises:
        ConfigError: a line is no prompt, or there is none.
    """
    seen: set[str] = set()
    with (out / "prompts.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for found, messages in _prompts(file, kind):
            canonical = json.dumps([found, messages], sort_keys=True)
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                record = {"id": digest, "kind": found, "messages": messages}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    if not seen:
        raise ConfigError(f"{file} holds no prompts; expected one a line.")
    return {"num_prompts": len(seen), "file": file.name}


def _prompts(file: Path, kind: str) -> Iterator[tuple[str, list[Message]]]:
    if suffix_of(file) in JSON_SUFFIXES:
        for where, record in records_of(file, PROMPT_RECORD):
            yield str(record.get("kind", kind)), prompt_messages(record, where, PROMPT_RECORD)
        return
    for line in _lines(file, newline="\n"):
        if text := line.strip():
            yield kind, [{"role": "user", "content": text}]


def _lines(file: Path, newline: str | None = None) -> Iterator[str]:
    """The lines of a text that the configuration names."""
    try:
        with opened_text(file, newline) as lines:
            yield from lines
    except ImportFileError as error:
        raise ConfigError(f"{error} The configuration names it.") from None


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


TEXT_RECORD = "messages, conversations, text, or chosen and rejected"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Texts of a file: plain text in pieces, JSON by record; of a comparison both sides alike."""
    if suffix_of(file) not in JSON_SUFFIXES:
        yield from _paragraphs(_lines(file))
        return
    for where, record in records_of(file, TEXT_RECORD, check=False):
        try:
            yield from _texts(record)
        except Refused as refused:
            raise unexpected(where, refused, TEXT_RECORD) from None


def _texts(record: RawRecord) -> Iterator[dict[str, Any]]:
    if "messages" in record:
        yield {"messages": _plain(member(record, "messages", list))}
    elif "text" in record:
        yield {"text": member(record, "text", str)}
    elif "conversations" in record and "chosen" not in record:
        yield {"messages": _plain(member(record, "conversations", list))}
    elif "chosen" in record and "rejected" in record:
        for side in ("chosen", "rejected"):
            text = record[side]
            messages = (
                hh.split_messages(hh.opened(text)) if isinstance(text, str) else _plain(member(record, side, list))
            )
            if not messages:
                raise Refused(
                    "malformed_dialogue",
                    f"{side} is no dialogue of turns after '\\n\\nHuman:' and '\\n\\nAssistant:'",
                )
            yield {"messages": messages}
    else:
        raise Refused("missing_field", f"found the fields {', '.join(sorted(record)) or 'none'}")


def _plain(given: list[Any]) -> list[Any]:
    """Messages as our own files have them; those that are so already stay as they are, whatever else they say."""
    messages = messages_of(given, "messages")
    same = all(
        isinstance(one, dict) and one.get("role") == other["role"] and one.get("content") == other["content"]
        for one, other in zip(given, messages, strict=True)
    )
    return given if same else messages


@contextmanager
def opened_text(file: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """A file as UTF-8 text without its byte order mark, unpacked where it is gzip; `newline` is as for `open`.

    Raises:
        ImportFileError: it can't be read to its end, or is not what its name says.
    """
    try:
        with file.open("rb") as raw:
            zipped = check_kind(file, raw.peek(HEAD_BYTES)[:HEAD_BYTES])
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


def _paragraphs(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
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
    """Write `prompt.json`: the messages, and a version made of the file's name and digest.

    Raises:
        ConfigError: the file can't be read, or is no prompt.
    """
    text = "".join(_lines(file))
    version = f"{file.stem} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    record = {"version": version, "messages": parse_prompt(text)}
    (out / "prompt.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"version": version, "num_messages": len(record["messages"])}
