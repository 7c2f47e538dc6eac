"""Tables that a phone shows as cards: each cell gets the heading of its column, which the style sheet puts before it.

Done to the finished HTML, so that a template says each heading once and no table can be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What people wrote is escaped, so that these tags are the templates' own.
_TABLE = re.compile(r'<table class="data.*?</table>', re.DOTALL)
_HEADING = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
_ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
_CELL = re.compile(r"<td(?=[ >])")
_TAG = re.compile(r"<[^>]*>")


def label_cells(html: str) -> str:
    """The page with the heading of its column on every cell of its tables."""
    return _TABLE.sub(lambda table: _labelled(table.group()), html)


def _labelled(table: str) -> str:
    head, body_tag, body = table.partition("<tbody>")
    headings = [_TAG.sub("", heading).strip().replace('"', "&quot;") for heading in _HEADING.findall(head)]
    return head + body_tag + _ROW.sub(lambda row: _row(row.group(), iter(headings)), body)


def _row(row: str, headings: Iterator[str]) -> str:
    return _CELL.sub(lambda _: f'<td data-label="{next(headings, "")}"', row)
