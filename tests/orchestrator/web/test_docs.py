"""Every route of the feedback app is in docs/reference/api.md."""

from __future__ import annotations

from fastapi.routing import APIRoute

from orchestrator.web.app import FeedbackConfig, create_app
from tests.paths import PROJECT_ROOT


def test_every_route_is_documented() -> None:
    documented = (PROJECT_ROOT / "docs" / "reference" / "api.md").read_text()
    # Neither address is spoken to before the application starts.
    app = create_app(FeedbackConfig("postgresql://localhost/none", "http://127.0.0.1:1"))
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) == 9
    for route in routes:
        assert f"{min(route.methods)} {route.path}" in documented
