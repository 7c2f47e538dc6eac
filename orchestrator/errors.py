"""Errors that a person can act on. The command line prints their one line; everything else is a traceback.

OrchestratorError
├── ConfigError         a setting is unknown, missing or of the wrong type
├── ArtifactError       an artifact is missing, half-written or does not match its digest
├── ImportFileError     a file cannot be read as what it claims to be
├── JobFailed           a training job ended without a result
│   └── JobRefused      it said in a line why it can't do what it was asked
├── CycleError          the cycle cannot begin or go on
│   ├── CycleBlocked    an open cycle with another configuration is in its way
│   ├── CycleBusy       another run of the cycle is in progress
│   └── CycleCancelled  it was given up while it was at work
├── DiskFull            a disk has no room for what was to be written
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


class CycleBlocked(CycleError):
    """An open cycle with another configuration is in the way; names it and what frees the way."""


class CycleBusy(CycleError):
    """Another run of the cycle is in progress; says which."""


class CycleCancelled(CycleError):
    """The cycle is not open any more: nothing of it is written. Says who gave it up, and why."""


class CyclePaused(CycleError):
    """A run was asked to end before the cycle does, and has; says after what."""


class DiskFull(OrchestratorError):
    """A disk has no room for what was to be written; names it, what is free, and about how much is needed."""


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
