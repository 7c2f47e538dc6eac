"""The rater's pages: come in, read the instructions, write, read two replies, choose, go on.

Every form names what it is about (a client key, a pair), so that a double click, a retry after a lost connection and a
second tab are the same act. After a form the browser is sent to a page: reload and back button send nothing again.
"""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.web.pages.rater.dialogue import add_dialogue
from orchestrator.web.pages.rater.entrance import add_entrance, add_platforms
from orchestrator.web.pages.rater.home import add_home, add_tasks
from orchestrator.web.pages.rater.pair import add_pair
from orchestrator.web.pages.rater.problems import add_problems
from orchestrator.web.pages.rater.shared import RaterPages
from orchestrator.web.pages.rater.writing import add_writing
from orchestrator.web.pages.shell import (
    PageRoute,
)
from orchestrator.web.service import Feedback


def pages(feedback: Feedback) -> APIRouter:
    """The routes of the pages, beside the JSON API."""
    shared = RaterPages(feedback)
    router = APIRouter(include_in_schema=False, route_class=PageRoute)
    add_entrance(router, shared)
    add_platforms(router, shared)
    add_home(router, shared)
    add_tasks(router, shared)
    add_dialogue(router, shared)
    add_pair(router, shared)
    add_problems(router, shared)
    add_writing(router, shared)
    return router
