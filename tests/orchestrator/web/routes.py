"""The routes of an application, also of the routers in it."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.routing import APIRoute


def routes_of(routes: list[object]) -> Iterator[APIRoute]:
    """Every route, however deep its router lies."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from routes_of(getattr(getattr(route, "original_router", None), "routes", []))
