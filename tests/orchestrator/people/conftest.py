"""The feedback app, for tests that reach it as people do."""

from tests.orchestrator.feedback_app import (
    admin,
    config,
    database,
    feedback_url,
    live,
    new_rater,
    policy_url,
    rater,
    stand_in,
)

__all__ = ["admin", "config", "database", "feedback_url", "live", "new_rater", "policy_url", "rater", "stand_in"]
