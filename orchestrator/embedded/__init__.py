"""Services that an instance brings along, so that one machine needs nothing installed: a Postgres server."""

from orchestrator.instance.postgres import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
