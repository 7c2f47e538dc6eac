"""Tell the policy server which snapshots to hold and which one is live.

The database is the record of what is deployed; the server reads it at its start. These calls only make a running
server follow at once.
"""

from __future__ import annotations

import httpx

from orchestrator.errors import ServiceUnavailable

# Loading a big snapshot reads, verifies and copies its weights.
LOAD_TIMEOUT_S = 600.0


class PolicyClient:
    """Admin calls to one policy server."""

    def __init__(self, url: str, admin_token: str | None) -> None:
        self._url = url
        self._headers = {"X-Admin-Token": admin_token or ""}

    def load(self, digest: str) -> None:
        """Fetch, verify and hold the snapshot, beside those already there."""
        self._post("/admin/load", digest)

    def promote(self, digest: str) -> None:
        """Let `policy-live` mean this snapshot for every request that begins from now on."""
        self._post("/admin/promote", digest)

    def unload(self, digest: str) -> None:
        """Free the snapshot once its running requests are done."""
        self._post("/admin/unload", digest)

    def _post(self, path: str, digest: str) -> None:
        try:
            response = httpx.post(
                self._url + path, json={"digest": digest}, headers=self._headers, timeout=LOAD_TIMEOUT_S
            )
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"The policy server at {self._url} does not answer ({type(error).__name__}: {error}). "
                "Start it (`orchestrator serve-policy`) and run the cycle again; finished stages are not repeated."
            ) from None
        if response.is_error:
            raise ServiceUnavailable(
                f"The policy server at {self._url} refused {path} for {digest}: "
                f"{response.status_code} {response.text[:500]}"
            )
