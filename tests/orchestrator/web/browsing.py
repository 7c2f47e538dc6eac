"""What a rater's browser does, without the browser: follow links, keep cookies, send a page's own forms."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import httpx


def plain_cells(html: str) -> str:
    """The page without what its tables' cells say for a phone, which is the heading of their column."""
    return re.sub(r' data-label="[^"]*"', "", html)


@dataclass
class PageForm:
    """A form of a page: where it goes, and the values that it carries by itself."""

    action: str
    values: dict[str, str] = field(default_factory=dict)


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[PageForm] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(PageForm(given.get("action", "")))
        elif tag == "input" and given.get("type") == "hidden" and self.forms:
            self.forms[-1].values[given["name"]] = given.get("value", "")


def forms(page: httpx.Response) -> list[PageForm]:
    """The forms of a page, in order."""
    parser = _Forms()
    parser.feed(page.text)
    return parser.forms


class Browser:
    """A browser on the feedback app: cookies, the headers that browsers send, forms."""

    def __init__(self, url: str) -> None:
        headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
        self.client = httpx.Client(base_url=url, headers=headers, follow_redirects=True, timeout=20)

    def get(self, path: str) -> httpx.Response:
        """A page."""
        return self.client.get(path)

    def send(self, page: httpx.Response, action: str, **values: str) -> httpx.Response:
        """Send the form of a page whose action ends so, with its own values and these."""
        found = [form for form in forms(page) if (form.action or str(page.url)).endswith(action)]
        # Forms for things of several kinds go to one address.
        (form,) = [form for form in found if form.values.get("kind") == values.get("kind")]
        return self.client.post(form.action or str(page.url), data=form.values | values)

    def begin(self, task: str = "helpful", question: str | None = None) -> httpx.Response:
        """The page of a new dialogue; agrees to the instructions where asked."""
        asked = question or {"red_team": "more_harmful", "red_team_choose_best": "harmless"}.get(task, "helpful")
        told = self.get(f"/tasks/{task}/{asked}")
        agreed = re.search(r'name="agree" value="([^"]+)"', told.text)
        return self.send(told, f"/tasks/{task}/{asked}", **({"agree": agreed.group(1)} if agreed else {}))

    def write(self, page: httpx.Response, content: str) -> httpx.Response:
        """Write a message; the page with the pair, both replies complete."""
        page = self.send(page, "/messages", content=content)
        assert page.status_code == 200, page.text
        pair = re.search(r'data-pair="(\d+)"', page.text)
        if pair is not None:
            with self.client.stream("GET", f"/pairs/{pair.group(1)}/stream") as events:
                events.read()
        return self.get(page.url.path)


def pair_id_of(page: httpx.Response) -> int:
    """The pair that a page shows."""
    found = re.search(r'data-pair="(\d+)"', page.text)
    assert found is not None, page.text
    return int(found.group(1))
