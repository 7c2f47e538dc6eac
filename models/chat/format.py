"""The only place where messages become token ids, and ids become text.

Tokenizer, template and chat.json belong to the initial policy (written by `models/jobs/prepare_policy.py`)
and go byte for byte into every preference model and snapshot made from it.

What a person typed never becomes a control token, whatever it says: control tokens inside contents are broken
apart before the template is rendered, and everything between the template's own control tokens is encoded as
plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

CHAT_FILE = "chat.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
# The first three must be there; older libraries write the others beside them.
FILES = (
    CHAT_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

# Added tokens that are not marked special but look like markup ("<tool_call>", "[INST]") steer a model all
# the same. Others (runs of spaces in GPT-NeoX, words added for a domain) are ordinary text.
_MARKUP = re.compile(r"<\S+>|\[\S+\]")
# Templates may ask for today's date; a training example must not depend on the day it was encoded.
_FIXED_DATE = "26 Jul 2024"
# What tokenizers take for white space beside an added token, by Unicode's property.
_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_PRIVATE_USE = range(0xE000, 0xF900)
# What a template raises by itself, and what its expressions may (a text of None that is trimmed, for one).
_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_USER_STAND_IN, _REPLY_STAND_IN = chr(0xE000), chr(0xE001)


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatFormatError(ValueError):
    """The folder or the messages don't fit: says what was found and what to do."""


class TemplateRefusal(ChatFormatError):
    """The template refuses this one dialogue (roles that must alternate, for one); others it may take."""

    def __init__(self, folder: Path, messages: Sequence[Message], why: str) -> None:
        roles = ", ".join(message["role"] for message in messages)
        super().__init__(f"The chat template of {folder} refuses a dialogue with the roles {roles}: {why}.")
        self.reason = f"the roles {roles}: {why}"
        """The same without the folder, which is another one in every run."""


class ChatFormat:
    """Turns messages into ids as the model of one folder expects them.

    `encode(prompt, reply=True) + encode_reply(text) + [score_id] == score_ids(prompt + [assistant text])`.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, chat: dict[str, Any], folder: Path) -> None:
        self._folder = folder
        # Kept from now on: what is copied is what was read, even if the folder moves or changes.
        self._files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
        self._tokenizer = _for_plain_text(_with_markup_special(tokenizer))
        # A text that does not begin what is encoded: SentencePiece's mark of a first word may belong to the very first.
        self._inner_tokenizer = _for_plain_text(_without_first_mark(self._tokenizer))
        self._template = self._parsed(template)
        self._variables: dict[str, str] = dict(chat.get("template_variables", {}))
        self.bos_id: int | None = chat.get("bos_id")
        self.eos_id: int = chat["eos_id"]
        # A publisher may name several ids at which a reply is over; what we write ends with the first.
        self.stop_ids = frozenset([self.eos_id, *chat.get("stop_ids", [])])
        self.pad_id: int = chat["pad_id"]
        self.score_id: int = chat["score_id"]
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._control = _control_tokens(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._takes_blanks_before = {token.content for token in added if token.lstrip}
        self._takes_blanks_after = {token.content for token in added if token.rstrip}
        self.control_ids = frozenset(self._control.values())
        self._control_pattern = re.compile(
            "|".join(re.escape(token) for token in sorted(self._control, key=len, reverse=True))
        )
        self._glue = self._find_glue()
        self._reply_context = self._find_reply_context()

    def _parsed(self, template: str) -> jinja2.Template:
        try:
            return _environment().from_string(template)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ChatFormatError(
                f"The chat template of {self._folder} can't be read{line}: {error}. Give the folder another "
                f"{TEMPLATE_FILE}."
            ) from error

    @classmethod
    def load(cls, folder: Path | str) -> ChatFormat:
        """The chat format of a prepared policy, preference model or snapshot.

        Raises:
            ChatFormatError: the folder lacks chat.json, the template or tokenizer.json, or they contradict
            each other.
        """
        folder = Path(folder)
        for name in (CHAT_FILE, TEMPLATE_FILE, TOKENIZER_FILE):
            if not (folder / name).is_file():
                raise ChatFormatError(
                    f"{folder} has no {name}; expected a prepared policy. Run prepare_policy on it first."
                )
        chat = json.loads((folder / CHAT_FILE).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        return cls(tokenizer, template, chat, folder)

    def encode(self, messages: Sequence[Message], *, reply: bool = False) -> list[int]:
        """Ids of a dialogue; with `reply` it ends where the assistant's next reply begins.

        Raises:
            TemplateRefusal: the template refuses the messages.
            ChatFormatError: no messages.
        """
        if not messages:
            raise ChatFormatError("No messages; a dialogue needs at least one.")
        safe, marker, separator = self._protected(messages)
        if not reply:
            return self._encode_rendered(self._render(safe), separator)
        rendered = self._render([*safe, {"role": "assistant", "content": marker}])
        if marker not in rendered:
            raise TemplateRefusal(self._folder, messages, "it leaves out the reply")
        before = rendered[: rendered.rindex(marker)]
        return self._encode_rendered(before.removesuffix(self._glue) if self._glue else before, separator)

    def encode_reply(self, text: str) -> list[int]:
        """Ids of a reply as the model would write it, closed by the end-of-turn id."""
        text = _encodable(text)
        context = self._encode_text(self._reply_context)
        joint = self._encode_text(self._reply_context + self._glue + text)
        # Encoded after what precedes it, as the template does (a SentencePiece tokenizer would otherwise
        # treat it as the beginning of a text); where the two melt into one token, the reply stands alone.
        ids = joint[len(context) :] if joint[: len(context)] == context else self._encode_text(self._glue + text)
        return [*ids, self.eos_id]

    def score_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a whole dialogue and the end-of-context id, where the preference model reads its score."""
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            ids = self.encode(messages[:-1], reply=True) + self.encode_reply(messages[-1]["content"])
        else:
            ids = self.encode(messages)
        return [*ids, self.score_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without control tokens and ids the tokenizer doesn't know."""
        plain = [i for i in ids if 0 <= i < self.vocab_size and i not in self.control_ids]
        text = self._tokenizer.decode(plain, skip_special_tokens=True)
        return text.removeprefix(self._glue) if self._glue else text

    def copy_to(self, folder: Path | str) -> None:
        """Copy tokenizer, template and chat.json byte for byte into another model's folder."""
        for name, content in self._files.items():
            (Path(folder) / name).write_bytes(content)

    @property
    def roles_are_control_tokens(self) -> bool:
        """Whether a control token parts the user's text from the reply.

        Where words do ("\\n\\nAssistant:", "[/INST]"), a user can write those words too.
        """
        before = self._before_reply()
        return self._control_pattern.search(before, before.rindex(_USER_STAND_IN)) is not None

    # Rendering

    def _render(self, messages: Sequence[Message], **variables: Any) -> str:
        try:
            known = {"add_generation_prompt": False, "tools": None} | self._variables | variables
            return self._template.render(messages=list(messages), **known)
        except _TEMPLATE_ERRORS as error:
            raise TemplateRefusal(self._folder, messages, str(error) or type(error).__name__) from error

    def _protected(self, messages: Sequence[Message]) -> tuple[list[Message], str, str]:
        """The messages with control tokens broken apart, a stand-in for the reply, and the breaking character.

        The character is one that occurs in no message, so that removing it restores the contents exactly.
        """
        contents = [_encodable(message["content"]) for message in messages]
        used = set().union(*contents)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        separator, marker = next(free), next(free)

        def broken(match: re.Match[str]) -> str:
            return separator.join(["", *match.group(), ""])

        safe: list[Message] = [
            {"role": message["role"], "content": self._control_pattern.sub(broken, content)}
            for message, content in zip(messages, contents, strict=True)
        ]
        return safe, marker, separator

    def _encode_rendered(self, rendered: str, separator: str) -> list[int]:
        """Ids of a rendered dialogue: its control tokens are the template's, the rest is plain text."""
        ids: list[int] = []
        position, last = 0, ""
        for match in self._control_pattern.finditer(rendered):
            ids += self._encode_between(last, rendered[position : match.start()], match.group(), separator)
            ids.append(self._control[match.group()])
            position, last = match.end(), match.group()
        ids += self._encode_between(last, rendered[position:], "", separator)
        # Some templates write a BOS and so does the text they were given; a model has seen one.
        while len(ids) > 1 and self.bos_id is not None and ids[0] == ids[1] == self.bos_id:
            ids.pop(0)
        return ids

    def _encode_between(self, before: str, text: str, after: str, separator: str) -> list[int]:
        """Ids of what stands between two control tokens, either of which may be "" where there is none.

        Some control tokens take the white space beside them with them (`rstrip` of Phi-3's roles).
        """
        return self._encode_text(self._stripped(before, text, after).replace(separator, ""), inner=bool(before))

    def _stripped(self, before: str, text: str, after: str) -> str:
        text = text.lstrip(_WHITE_SPACE) if before in self._takes_blanks_after else text
        return text.rstrip(_WHITE_SPACE) if after in self._takes_blanks_before else text

    def _encode_text(self, text: str, *, inner: bool = True) -> list[int]:
        """Ids of plain text, by default such as stands behind something; never a control id."""
        if not text:
            return []
        tokenizer = self._inner_tokenizer if inner else self._tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if self.control_ids.isdisjoint(ids):
            return ids
        # A vocabulary that holds its control tokens as ordinary pieces too: encode those spots letter by
        # letter.
        ids = []
        position = 0
        for match in self._control_pattern.finditer(text):
            for piece in (text[position : match.start()], *match.group()):
                ids += tokenizer.encode(piece, add_special_tokens=False).ids if piece else []
            position = match.end()
        if position < len(text):
            ids += tokenizer.encode(text[position:], add_special_tokens=False).ids
        return [i for i in ids if i not in self.control_ids]

    # What stands between the prompt and the reply

    def _find_glue(self) -> str:
        """White space that the template writes before a reply and the model is expected to write itself.

        "[/INST] Hello" of a template without generation prompt: the space belongs to the reply's first token.
        """
        before = self._before_reply()
        prompt = self._render([{"role": "user", "content": _USER_STAND_IN}], add_generation_prompt=True)
        glue = before.removeprefix(prompt) if before.startswith(prompt) else ""
        if glue and not glue.isspace():
            glue = glue[len(glue.rstrip(" ")) :]
        return glue

    def _find_reply_context(self) -> str:
        """What the template writes between the last control token, or the user's text, and the reply."""
        before = self._before_reply().removesuffix(self._glue) if self._glue else self._before_reply()
        said = before.rindex(_USER_STAND_IN) + 1
        *_, last = [None, *self._control_pattern.finditer(before, said)]
        return before[said:] if last is None else self._stripped(last.group(), before[last.end() :], "")

    def _before_reply(self) -> str:
        rendered = self._render(
            [{"role": "user", "content": _USER_STAND_IN}, {"role": "assistant", "content": _REPLY_STAND_IN}]
        )
        if _REPLY_STAND_IN not in rendered or _USER_STAND_IN not in rendered:
            raise ChatFormatError(f"The chat template of {self._folder} leaves out what the user or assistant says.")
        return rendered[: rendered.rindex(_REPLY_STAND_IN)]


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks what the assistant writes: here it is plain text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """What stands between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it (the settings of transformers), except that the date stands still."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda _format: _FIXED_DATE
    return environment


def _with_markup_special(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with markup-like added tokens marked special, so that plain text can't produce them."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or _MARKUP.fullmatch(token["content"]) is not None
    return Tokenizer.from_str(json.dumps(state))


def _for_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer such that no text is parsed for control tokens; those of the template are found by ourselves."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _without_first_mark(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for a text that is not the first of what is encoded (`prepend_scheme` "first" of Metaspace)."""
    state = json.loads(tokenizer.to_str())
    parts = [state["pre_tokenizer"] or {}]
    parts += parts[0].get("pretokenizers", [])
    for part in parts:
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(state))


def _control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: index for index, token in added.items() if token.special}


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced, which no tokenizer accepts ("\\ud800" in JSON is one)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_same_chat(folder: Path, initial: Path, what: str) -> None:
    """Refuse a model whose tokenizer or template is not the initial policy's, byte for byte.

    Raises:
        ChatFormatError: a file differs; `what` names the model.
    """
    for name in FILES:
        mine, its = initial / name, folder / name
        if mine.exists() and (not its.exists() or mine.read_bytes() != its.read_bytes()):
            raise ChatFormatError(
                f"{name} of the {what} {folder} differs from the initial policy's {initial}. "
                "Train the preference model from this initial policy."
            )
