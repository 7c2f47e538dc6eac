"""What every page shares: templates, security headers, cookies, and the check that a form is the rater's own."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Path, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.datastructures import FormData

from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import json_answer
from orchestrator.people.access import SESSION_LIFETIME, SignedIn
from orchestrator.people.texts import with_plain_line_ends
from orchestrator.web.pages.markdown import render_markdown
from orchestrator.web.pages.tables import label_cells

Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
"""The id of a row in an address: a number that Postgres' bigint can hold."""

Number = Annotated[int, Path(ge=0, le=2**31 - 1)]
"""The number of a cycle in an address."""

SESSION_COOKIE = "orchestrator_session"

# Nothing is loaded from elsewhere and nothing inline runs: what a reply smuggles past the sanitiser still does nothing.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # An invitation's secret is in its address; no other host may learn it. Not no-referrer: that would blank the
    # Origin header of our own forms, by which they are told from another site's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
    # The back button must ask again: an old page could show a pair that was compared since.
    "Cache-Control": "no-store",
}


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.web.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = render_markdown
    environment.filters["commands"] = with_commands
    return environment


def page(template: str, *, status: int = 200, me: SignedIn | None = None, **values: object) -> HTMLResponse:
    """A page of a template; `me` is whoever is signed in."""
    return page_of(template, values, status=status, me=me)


def page_of(
    template: str, values: Mapping[str, object], *, status: int = 200, me: SignedIn | None = None
) -> HTMLResponse:
    """The same of values that were gathered elsewhere."""
    return HTMLResponse(label_cells(rendered(template, me=me, **values)), status, SECURITY_HEADERS)


def rendered(template: str, **values: object) -> str:
    """The HTML of a template, whole page or part of one; everything that people wrote is escaped."""
    return _templates().get_template(template).render(values)


def with_commands(text: str) -> Markup:
    """A sentence of ours as HTML: what it has between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its other one
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def wants_page(request: Request) -> bool:
    """Whether a person's browser asked, rather than a program or a page's script."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


HEADINGS = {
    401: "Sign in first", 403: "Not allowed", 404: "Not here", 410: "Over", 429: "A moment, please", 503: "In a moment"
}  # fmt: skip


def error_answer(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as a page for people, as JSON for everything else."""
    if not wants_page(request):
        return json_answer(request, status, code, message, headers)
    heading = HEADINGS.get(status, "That did not work")
    answer = (
        page("desk/error.html", status=status, heading=heading, message=message, desk=True, back=_back_at_desk(request))
        if request.url.path.startswith("/desk")
        else page("error.html", status=status, heading=heading, message=message)
    )
    answer.headers.update(headers or {})
    return answer


def _back_at_desk(request: Request) -> str:
    """The page of the desk whose form or link led here; the desk's first page where the browser doesn't say."""
    came_from = urlsplit(request.headers.get("referer", ""))
    ours = came_from.netloc == request.headers.get("host") and came_from.path.startswith("/desk")
    return came_from.path if ours and came_from.path != request.url.path else "/desk"


class PageRoute(APIRoute):
    """A route of the pages: a form that the page's script sent is told where to go, in place of being sent there."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the answer to a script translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            response = await handle(request)
            if response.status_code == 303 and not wants_page(request):
                return JSONResponse(
                    {"go": response.headers["location"]},
                    headers={"Cache-Control": "no-store"},
                    background=response.background,
                )
            return response

        return translated


def go_to(path: str) -> RedirectResponse:
    """Send the browser to another page after a form: a reload then sends nothing again."""
    return RedirectResponse(path, 303, {"Cache-Control": "no-store"})


def set_session(request: Request, response: Response, token: str) -> None:
    """Give the browser its session. Lax: the cookie comes along when a rater follows a link to us."""
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=is_https(request),
        path="/",
    )


def forget_session(response: Response) -> None:
    """Take the session out of the browser."""
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="lax")


def is_https(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy before us."""
    forwarded: str = request.headers.get("x-forwarded-proto", request.url.scheme)
    return forwarded.split(",")[0].strip() == "https"


def base_of(request: Request) -> str:
    """The address under which the browser has found us, as links to us begin."""
    return f"{'https' if is_https(request) else 'http'}://{request.headers.get('host', '')}"


def address_of(request: Request) -> str | None:
    """Where a request comes from; behind a proxy on this machine, the address that it forwards."""
    return None if request.client is None else request.client.host


def check_same_site(request: Request) -> None:
    """Refuse a form that another site sent; browsers say where a form comes from.

    Raises:
        ApiError: 403, the form came from elsewhere.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        ours = site in ("same-origin", "none")
    else:
        # Browsers before 2023. A program that sends neither header is not a browser and holds no one's cookie.
        origin = request.headers.get("origin")
        ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not ours:
        raise ApiError(403, "another_site", "This form was sent from another site. Open the page here and try again.")


def check_form(request: Request, form: FormData, me: SignedIn) -> None:
    """Refuse a form that was not made for this session.

    Raises:
        ApiError: 403, from elsewhere or from a session that is over.
    """
    check_same_site(request)
    given = form.get("csrf")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), me.csrf.encode()):
        raise ApiError(
            403,
            "stale_form",
            "This page is from an earlier session. Keep a copy of your text, reload the page and send again.",
        )


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A text field of a form; line ends as people mean them (browsers send CRLF)."""
    value = form.get(name, default)
    return with_plain_line_ends(value) if isinstance(value, str) else default
