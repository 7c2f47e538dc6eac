"""Errors that a person can act on. The command line prints their one line; everything else is a traceback.

OrchestratorError
├── ConfigError         a setting is unknown, missing or of the wrong type
├── ArtifactError       an artifact is missing, half-written or does not match its digest
├── ImportFileError     a file cannot be read as what it claims to be
├── JobFailed           a training job ended without a result
│   └── JobRefused      it said in a line why it can't do what it was asked
├── CycleError          the cycle cannot begin or go on
└── ServiceUnavailable  Postgres, the Prefect server or the policy server does not answer
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of all errors whose message says what was found, what was expected and what to do."""

    exit_status = 2


class ConfigError(OrchestratorError):
    """A setting is unknown, missing or of the wrong type."""


class ArtifactError(OrchestratorError):
    """An artifact is missing, half-written or does not match its digest."""


class ImportFileError(OrchestratorError):
    """A file cannot be read as what it claims to be; names file and line."""


class JobFailed(OrchestratorError):
    """A training job ended without a result; carries the last lines of its log."""


class JobRefused(JobFailed):
    """A training job found something wrong with what it was given; carries the line in which it said so."""


class CycleError(OrchestratorError):
    """The cycle cannot begin or go on."""


class ServiceUnavailable(OrchestratorError):
    """A service does not answer; names its address."""


class ApiError(Exception):
    """A refusal with its HTTP status; the message says what was found, what was expected and what to do."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
