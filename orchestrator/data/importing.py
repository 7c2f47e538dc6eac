"""Import of comparisons from files (catalogue C9): every record comes in, is there already, or is in quarantine.

One file is one transaction: the caller commits, and a file that cannot be read to its end leaves nothing
behind. Formats are in `formats/`, what happens in the database in `import_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from orchestrator.data.formats import FORMATS, HEAD_RECORDS, detect, make_parser
from orchestrator.data.formats.reading import RawRecord, RecordFile
from orchestrator.data.formats.records import Refused, load_object
from orchestrator.data.import_tables import ImportFacts, ImportOptions, Staging
from orchestrator.errors import ImportFileError

RECORDS_AT_ONCE = 1000
"""Records between two looks at how much of the file was read."""

REFUSED_LINES = 5
"""Lines of each reason that a report names."""


@dataclass(frozen=True)
class ImportRequest:
    """How to read a file; None is found out from the file."""

    format: str | None = None
    source: str | None = None
    """Name of the set; None is the name of the file's folder."""
    question: str | None = None
    label_kind: str | None = None
    tranche: str = "imported"
    split: str | None = None
    questions: Path | None = None
    """MT-bench's questions, where they do not lie beside the file."""
    answers: Path | None = None


@dataclass(frozen=True)
class ImportReport:
    """What became of a file. `read = imported + already_there + quarantined`."""

    file: str
    format: str
    source: str
    records: int
    """Records in the file; a ranked tree is one of these and holds several comparisons."""
    read: int
    imported: int
    already_there: int
    quarantined: int
    reasons: dict[str, int]
    """Quarantined records by reason code."""
    lines: dict[str, list[int]]
    """The first lines of each reason; `orchestrator quarantine` shows all."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def import_file(
    session: Session,
    file: Path,
    request: ImportRequest | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> ImportReport:
    """Import one file in the session's transaction; the caller commits. `progress` is told the share of it read.

    Raises:
        ImportFileError: the file cannot be read, is in no known format, or needs an option; nothing may be
            committed then.
    """
    request = request or ImportRequest()
    started_at = datetime.now(UTC)
    with RecordFile(file) as source_file:
        records = iter(source_file)
        head = list(islice(records, HEAD_RECORDS))
        first = head[0] if head else None
        name = request.format or ("own" if first is None else _detect(file, head))
        options = _options(file, name, request if first else ImportRequest())
        parse = make_parser(name, file, request.questions, request.answers) if first else FORMATS["own"].parse
        staging = Staging(session, options)
        num_records = 0
        for raw in chain(head, records):
            num_records += 1
            if num_records % RECORDS_AT_ONCE == 0:
                progress(source_file.share_read)
            try:
                assert parse is not None
                for item in parse(load_object(raw.text)):
                    if isinstance(item, Refused):
                        staging.refuse(item, raw.line, raw.text)
                    else:
                        staging.add(item, raw.line, raw.text)
            except Refused as refused:
                if raw is first and refused.reason == "not_json":
                    raise _not_json(file, raw, refused) from None
                staging.refuse(refused, raw.line, raw.text)
        facts = ImportFacts(str(file), source_file.digest(), name, started_at)
    progress(1.0)
    counts = staging.finish(facts)
    lines = staging.refused_lines(REFUSED_LINES)
    imported, already_there = counts.pop("imported"), counts.pop("already_there")
    quarantined = sum(counts.values())
    return ImportReport(
        file=str(file),
        format=name,
        source=options.source,
        records=num_records,
        read=imported + already_there + quarantined,
        imported=imported,
        already_there=already_there,
        quarantined=quarantined,
        reasons=counts,
        lines=lines,
    )


def _detect(file: Path, head: list[RawRecord]) -> str:
    """The format of the first records that are objects; those that are not go to quarantine later."""
    for raw in head:
        try:
            record = load_object(raw.text, check=False)
        except Refused as refused:
            if raw is head[0] and refused.reason == "not_json":
                raise _not_json(file, raw, refused) from None
            continue
        return detect(record, f"{file}, line {raw.line}")
    raise ImportFileError(
        f"{file}, line {head[0].line}: none of the first {len(head)} records is a JSON object. "
        "Nothing of this file was imported."
    )


def _not_json(file: Path, first: RawRecord, refused: Refused) -> ImportFileError:
    return ImportFileError(
        f"{file}, line {first.line}: the first record is not JSON ({refused.detail}); "
        "expected JSON Lines or one JSON array. Nothing of this file was imported."
    )


def _options(file: Path, name: str, request: ImportRequest) -> ImportOptions:
    folder = file.absolute().parent.name or "import"
    options = ImportOptions(
        source=request.source or folder,
        label_kind=request.label_kind,
        tranche=request.tranche,
        split=request.split,
    )
    if name == "own":
        if request.source or request.question or request.label_kind or request.tranche != "imported":
            raise ImportFileError(
                f"{file} is in the product's own format, whose records carry source, question, label kind and "
                "tranche; leave these options out."
            )
        return options
    if request.question:
        return replace(options, question=request.question)
    if FORMATS[name].needs_question:
        guesses = [question for question in ("helpful", "harmless") if question in folder.lower()]
        if len(guesses) != 1:
            raise ImportFileError(
                f"{file}: hh-rlhf files do not say what was asked, and neither does the folder's name {folder!r}. "
                "Say --question helpful or --question harmless."
            )
        return replace(options, question=guesses[0])
    return options
