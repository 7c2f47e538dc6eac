"""A few calls to the policy server over HTTP: hold a snapshot, and look again at what is live.

The database is the record of what is deployed, and the server follows it; these calls only make it follow at once.
"""

from __future__ import annotations

from typing import Any

import httpx

from orchestrator.errors import ServiceUnavailable
from orchestrator.http_shared.proxies import proxy_for, tls
from orchestrator.settings import Settings

# Loading a big snapshot reads, verifies and copies its weights.
LOAD_TIMEOUT_S = 600.0


class Unusable(ServiceUnavailable):
    """The policy server answers, and can't serve the snapshot."""


class PolicyApi:
    """Admin calls to one policy server."""

    def __init__(self, url: str, admin_token: str | None) -> None:
        self._url = url
        self._headers = {"X-Admin-Token": admin_token or ""}

    def load(self, digest: str) -> None:
        """Fetch, verify and hold the snapshot, beside those already there.

        Raises:
            ServiceUnavailable: no policy server answers.
            Unusable: it does, and refuses.
        """
        self._post("/admin/load", {"digest": digest})

    def follow(self) -> str | None:
        """Let `policy-live` mean what the database says from now on; returns the digest of what is live then.

        Raises:
            ServiceUnavailable: no policy server answers.
            Unusable: it does, and refuses.
        """
        live: str | None = self._post("/admin/refresh", None)["live"]
        return live

    def _post(self, path: str, body: dict[str, str] | None) -> Any:
        try:
            with httpx.Client(proxy=proxy_for(self._url), verify=tls(), trust_env=False) as client:
                response = client.post(self._url + path, json=body, headers=self._headers, timeout=LOAD_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"The policy server at {self._url} does not answer ({type(error).__name__}: {error}). "
                "Start it (`orchestrator serve-policy`) and run the cycle again; finished stages are not repeated."
            ) from None
        if response.is_error:
            of = f" for {body['digest']}" if body else ""
            raise Unusable(
                f"The policy server at {self._url} refused {path}{of}: {response.status_code} {response.text[:500]}"
            )
        return response.json()


def policy_api(settings: Settings | None = None) -> PolicyApi | None:
    """The instance's policy server; None where there is none, as for training on imported comparisons alone."""
    settings = settings or Settings.from_env()
    return PolicyApi(settings.policy_url, settings.admin_token) if settings.policy_url else None
