"""Give up a cycle from the Prefect UI: the form of the Prefect deployment `cancel-cycle`.

`orchestrator cycle cancel` is the same in a terminal; both go through `orchestrator/cycles/cancelling.py`.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.states import told_in_a_line
from flows.threads import in_thread
from orchestrator.cycles.cancelling import give_up
from orchestrator.errors import OrchestratorError
from orchestrator.instance.identity import own_prefect
from orchestrator.store.acts import LONGEST_NAME, LONGEST_REASON, claimed, reason_of


def cancel_run_name() -> str:
    """Name of the form's run: what it gives up."""
    return f"cancel cycle {flow_run.parameters.get('cycle', '?')}"


@flow(name="cancel-cycle", flow_run_name=cancel_run_name)
@told_in_a_line(OrchestratorError)
async def cancel_cycle(
    cycle: Annotated[int, Field(ge=0)],
    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_REASON)],
    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)],
) -> State:
    """Give up an open cycle: its runs and its training end within seconds, and nothing more of it is written.

    What it froze goes into the next comparison set, and the live policy goes on.

    Args:
        cycle: Number of the open cycle, as its runs are named: 3 for "cycle 3: …".
        reason: Why it is given up, in a sentence. It stands on the record, beside the cycle.
        name: Who you are. Nobody proves it here, so it is recorded as claimed.
    """
    actor, why, said = claimed(name), reason_of(reason), list[str]()
    logger = get_run_logger()

    def say(line: str) -> None:
        said.append(line)
        logger.info(line)

    await in_thread(give_up, cycle, actor, why, await in_thread(own_prefect), say)
    return Completed(name="Cycle cancelled", message=" ".join(sentence(line) for line in said))


def sentence(line: str) -> str:
    """The line with a full stop."""
    return line if line.endswith(".") else f"{line}."
