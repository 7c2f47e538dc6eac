"""The one error of the jobs, apart from `job.py`, so that settings are read and checked without torch."""

from __future__ import annotations


class JobError(Exception):
    """A person's mistake: printed as one line, exit status 2."""
