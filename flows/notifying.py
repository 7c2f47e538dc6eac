"""Tell people where a run needs them, or ended otherwise than they may expect: Prefect's automations send, by Apprise.

The Prefect server sends, so that a dead worker is told of too. Whom to tell is `ORCHESTRATOR_NOTIFY`.
"""

from __future__ import annotations

from uuid import UUID

from apprise import Apprise
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import PrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from orchestrator.cycles.telling import CHANGED_BY_HAND
from orchestrator.errors import ConfigError
from orchestrator.settings import secret

VARIABLE = "ORCHESTRATOR_NOTIFY"
NOBODY = "nobody"
AUTOMATION = "tell people"
CHANGES = "tell people what was put live by hand"
DESCRIPTION = f"Whom {VARIABLE} names. `orchestrator register` writes this anew; change the variable, not this."
BLOCK = "orchestrator-notify-{}"
STATES = ("Failed", "Crashed", "Blocked", "Waiting for approval", "Refused", "Skipped")
"""Names of the states of runs that people are told of; a name with more after it counts too."""
# A training that fails ends its cycle's run too, and people are told of that one.
FLOWS = (
    "cycle", "cancel-cycle", "decide-promotion", "expire-approvals", "finish-cycle", "roll-back", "promote-policy",
    "robustness",
)  # fmt: skip
SUBJECT = "{{ flow_run.name }}: {{ flow_run.state.name }}"
BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"


def wanted() -> list[str] | None:
    """The Apprise URLs that are to be told, [] for nobody; None where the environment says nothing.

    Raises:
        ConfigError: one is no Apprise URL. The message names its place and scheme alone, since it may hold a password.
    """
    told = secret(VARIABLE)
    if told is None:
        return None
    if told.strip() == NOBODY:
        return []
    urls = told.split()
    for place, url in enumerate(urls, 1):
        if not Apprise().add(url):
            scheme = url.split("://")[0] if "://" in url else "none"
            raise ConfigError(
                f"Address {place} of {VARIABLE} can't be told anything (its scheme: {scheme}). Expected Apprise URLs "
                "separated by blanks, such as mailto://user:password@example.org or json://host/path; "
                "https://appriseit.com/services lists them."
            )
    return urls


async def ensure_notifications(client: PrefectClient, urls: list[str] | None) -> str | None:
    """Let the server tell these addresses, or nobody; with None it stays as it is. Returns what was done, in words."""
    if urls is None:
        return None
    if not urls:
        for name in (AUTOMATION, CHANGES):
            for automation in await client.read_automations_by_name(name):
                await client.delete_automation(automation.id)
        return "nobody is told of runs that fail or wait"
    blocks = [await _block(place, url) for place, url in enumerate(urls, 1)]
    for telling in (_of_runs(blocks), _of_changes(blocks)):
        existing = await client.read_automations_by_name(telling.name)
        if existing:
            await client.update_automation(existing[0].id, telling)
        else:
            await client.create_automation(telling)
    return f"{len(urls)} address{'es are' if len(urls) > 1 else ' is'} told of runs that fail or wait"


async def _block(place: int, url: str) -> UUID:
    # Of the blocks that every Prefect server knows, this one hands any URL on to Apprise.
    return await SlackWebhook(url=url).asave(BLOCK.format(place), overwrite=True)  # type: ignore[arg-type]


def _of_runs(blocks: list[UUID]) -> AutomationCore:
    return AutomationCore(
        name=AUTOMATION,
        description=DESCRIPTION,
        trigger=EventTrigger(
            # A star stands for one character or more.
            expect={f"prefect.flow-run.{state}{more}" for state in STATES for more in ("", "*")},
            match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
            match_related={  # type: ignore[arg-type]
                "prefect.resource.role": "flow",
                "prefect.resource.name": list(FLOWS),
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY) for block in blocks],
    )


def _of_changes(blocks: list[UUID]) -> AutomationCore:
    """What a person put live, by command and desk too, which are no runs."""
    return AutomationCore(
        name=CHANGES,
        description=DESCRIPTION,
        trigger=EventTrigger(expect={CHANGED_BY_HAND}, posture=Posture.Reactive, threshold=1),
        actions=[
            SendNotification(
                block_document_id=block, subject="{{ event.payload.subject }}", body="{{ event.payload.message }}"
            )
            for block in blocks
        ],
    )
