"""The SQL that turns frozen comparisons into the lines of a comparison set.

The lines are made in Postgres because there they never become objects: a million of them cost less than three plain
`COPY`s of the same bytes. `orchestrator/data/comparison_set.py` runs this; the record is described in
`docs/explanation/data.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from db.split import HASH_DIGITS, held_out_threshold
from orchestrator.config import ComparisonsSection
from orchestrator.data.questions import A_IS_BETTER, QUESTION_ANSWERED

RUNS = """
select freezes.id, run.first_id, run.last_id
from freezes left join frozen_comparisons run on run.freeze_id = freezes.id
where freezes.id <= %(freeze_id)s
order by freezes.id, run.first_id
"""

PINNED = """
select dialogues.id, dialogues.split_key
from dialogues
where dialogues.pinned_split = 'held_out' and dialogues.split_key is not null and exists (
    select from pairs
    join comparisons on comparisons.pair_id = pairs.id
    join frozen_comparisons run on int8range(run.first_id, run.last_id, '[]') @> comparisons.id
    where pairs.dialogue_id = dialogues.id and run.freeze_id <= %(freeze_id)s
)
order by dialogues.id
"""

LAST_CHANGE = """
select coalesce(max(id), %(freeze_id)s) from freezes
where id <= %(freeze_id)s
  and (num_fresh > 0 or exists (select from frozen_withdrawals heeded where heeded.freeze_id = freezes.id))
"""

WITHDRAWN = """
select withdrawals.rater_id
from frozen_withdrawals heeded
join withdrawals on withdrawals.id = heeded.withdrawal_id
where heeded.freeze_id <= %(freeze_id)s
order by withdrawals.rater_id
"""

AFFECTED = """
select comparisons.id
from dialogues
join pairs on pairs.dialogue_id = dialogues.id
join comparisons on comparisons.pair_id = pairs.id
where dialogues.split_key = any(%(keys)s)
union
select comparisons.id from comparisons where comparisons.rater_id = any(%(raters)s)
order by id
"""
"""Comparisons whose place depends on a pin of these split keys, or on a withdrawal of these raters."""

# A block is a hundred comparisons: look each row up by its index. Without statistics, as on a database that was
# filled a moment ago, the planner would read whole tables once per block instead.
PREPARE = (
    "set local enable_hashjoin = off",
    "set local enable_mergejoin = off",
    "set local enable_seqscan = off",
    "set local random_page_cost = 1.1",
    "set local max_parallel_workers_per_gather = 0",
    "set local jit = off",
    "set local work_mem = '32MB'",
)

# Only in sets that ties may enter, so that the lines of all others are what they always were.
TIE = """
    case when row.side = 'none' then concat(',"tie":"', row.undecided, '"') end,"""


def _record(with_ties: bool) -> str:
    """The line of a comparison. Of a tie neither reply is better; its two sides stand in the same order every time."""
    return f"""
concat(
    '{{"id":"', row.id,
    '","split":"', case when row.held_out then 'held_out' else 'train' end,
    '","split_key":"', row.split_key,
    '","source":', to_json(row.source),
    ',"tranche":"', row.tranche,
    '","question":"', {QUESTION_ANSWERED},
    '","strength":', coalesce(row.strength::text, 'null'), {TIE if with_ties else ""}
    ',"rater":"', row.rater_id,
    '","turn":', coalesce(row.path[1]::bigint, 1) + row.own_turns,
    ',"prompt":[', row.system,
    coalesce(row.path[2], concat('{{"role":"', row.role, '","content":', to_json(row.content), '}}')),
    '],"better":[', case when {A_IS_BETTER} then row.history_a else row.history_b end,
    '{{"role":"assistant","content":', to_json(case when {A_IS_BETTER} then row.text_a else row.text_b end),
    '}}],"worse":[', case when {A_IS_BETTER} then row.history_b else row.history_a end,
    '{{"role":"assistant","content":', to_json(case when {A_IS_BETTER} then row.text_b else row.text_a end),
    '}}],"better_snapshot":',
    coalesce(to_json(case when {A_IS_BETTER} then row.digest_a else row.digest_b end), 'null'),
    ',"worse_snapshot":', coalesce(to_json(case when {A_IS_BETTER} then row.digest_b else row.digest_a end), 'null'),
    '}}', chr(10))
"""


# The dialogue up to the rater's message, opening first, and the turn it is. Only where there is more than one message:
# starting the recursion costs more than everything else about a comparison of one turn.
PATH = """
case when message.parent_id is not null then (
    with recursive up (parent_id, role, content, height) as (
        select message.parent_id, message.role, message.content, 0
        union all
        select parent.parent_id, parent.role, parent.content, up.height + 1
        from up join messages parent on parent.id = up.parent_id
    )
    select array[
        (count(*) filter (where role = 'user'))::text,
        string_agg(concat('{"role":"', role, '","content":', to_json(content), '}'), ',' order by height desc)
    ] from up
) end
"""


def _history(side: str) -> str:
    """The messages before a reply that only its own side has, each followed by a comma; mostly none."""
    return f"""
    case when {side}.history is not null then (
        select string_agg(
            concat('{{"role":', entry -> 'role', ',"content":', entry -> 'content', '}},'), '' order by place)
        from jsonb_array_elements({side}.history) with ordinality as entries (entry, place)
    ) end"""


def _own_turns(side: str) -> str:
    """User messages among those; the judged reply is that many turns later."""
    return f"""
    case when {side}.history is null then 0 else (
        select count(*) from jsonb_array_elements({side}.history) entry where entry ->> 'role' = 'user'
    ) end"""


def _reason(
    section: ComparisonsSection, any_pinned: bool, withdrawn: str, erased: Literal["none", "left out", "had"]
) -> str:
    """Why a comparison is left out, NULL where it is not; the first that applies counts.

    `withdrawn` is an array of the ids of the raters who withdrew. What was erased is "left out" of a set that is built
    now; a set that was built before "had" it, whatever is left of its text; "none" where nobody was erased.
    """
    is_erased = "exists (select from erased_comparisons gone where gone.comparison_id = comparison.id)"
    undecided = "and comparison.reason <> all(%(ties)s)" if section.ties else ""
    pinned = "when pinned_keys.split_key is not null and dialogue.pinned_split is null then 'held_out_elsewhere'"
    return f"""
    case
        when comparison.rater_id = any({withdrawn}) then 'withdrawn'
        {f"when {is_erased} then 'erased'" if erased == "left out" else ""}
        when pair.purpose = 'evaluation' then 'evaluation'
        when comparison.side = 'none' {undecided} then 'none_' || comparison.reason
        when comparison.strength < %(min_strength)s then 'weak'
        when comparison.label_kind <> all(%(label_kinds)s) then comparison.label_kind || '_label'
        {"" if section.sources is None else "when dialogue.source <> all(%(sources)s) then 'source'"}
        {f"when {is_erased} then null" if erased == "had" else ""}
        when a.text = b.text and a.history is not distinct from b.history then 'identical_replies'
        when dialogue.split_key is null then 'no_opening_message'
        {pinned if any_pinned else ""}
    end"""


def copy_statement(
    section: ComparisonsSection,
    blocks: list[tuple[int, int]],
    *,
    any_pinned: bool,
    any_erased: bool,
    withdrawn: list[int],
) -> tuple[str, Mapping[str, object]]:
    """A COPY that gives one row per block of comparison ids, and its parameters.

    Its columns: number of the block, training records, held-out records, their lines, and the lines of what was left
    out. With `any_pinned` it reads the pinned split keys from the temporary table `pinned_keys`; comparisons of the
    raters `withdrawn` are left out.
    """
    # Asked for each comparison only where there is an answer.
    erased: Literal["none", "left out"] = "left out" if any_erased else "none"
    held_out = f"('x' || left(dialogue.split_key, {HASH_DIGITS}))::bit({4 * HASH_DIGITS})::bigint < %(threshold)s"
    join_pinned = "left join pinned_keys on pinned_keys.split_key = dialogue.split_key" if any_pinned else ""
    statement = f"""
copy (
    select block.number, sent.num_train, sent.num_held_out, sent.lines, sent.excluded
    from unnest(%(first)s::bigint[], %(last)s::bigint[]) with ordinality as block (first_id, last_id, number)
    cross join lateral (
        select
            count(*) filter (where row.reason is null and not row.held_out) as num_train,
            count(*) filter (where row.reason is null and row.held_out) as num_held_out,
            string_agg({_record(bool(section.ties))}, '' order by row.id) filter (where row.reason is null) as lines,
            string_agg(
                concat('{{"id":"', row.id, '","reason":"', row.reason, '"}}', chr(10)), '' order by row.id
            ) filter (where row.reason is not null) as excluded
        from (
            select
                comparison.id, comparison.side, comparison.reason as undecided, comparison.strength,
                comparison.rater_id, pair.question,
                dialogue.source, dialogue.tranche, dialogue.split_key, message.role, message.content,
                a.text as text_a, b.text as text_b, snapshot_a.digest as digest_a, snapshot_b.digest as digest_b,
                coalesce(dialogue.pinned_split = 'held_out', {held_out}) as held_out,
                case when dialogue.system is not null then
                    concat('{{"role":"system","content":', to_json(dialogue.system), '}},')
                end as system,
                {PATH} as path,
                greatest({_own_turns("a")}, {_own_turns("b")}) as own_turns,
                {_history("a")} as history_a,
                {_history("b")} as history_b,
                {_reason(section, any_pinned, "%(withdrawn)s::bigint[]", erased)} as reason
            from comparisons comparison
            join pairs pair on pair.id = comparison.pair_id
            join dialogues dialogue on dialogue.id = pair.dialogue_id
            join messages message on message.id = pair.parent_id
            join candidates a on a.pair_id = comparison.pair_id and a.side = 'a'
            join candidates b on b.pair_id = comparison.pair_id and b.side = 'b'
            left join artifacts snapshot_a on snapshot_a.id = a.snapshot_id
            left join artifacts snapshot_b on snapshot_b.id = b.snapshot_id
            {join_pinned}
            where comparison.id between block.first_id and block.last_id
            offset 0
        ) row
    ) sent
) to stdout (format binary)
"""
    return statement, _parameters(section) | {
        "first": [first for first, _ in blocks],
        "last": [last for _, last in blocks],
        "threshold": held_out_threshold(section.held_out_fraction),
        "withdrawn": withdrawn,
    }


def _parameters(section: ComparisonsSection) -> dict[str, object]:
    return {
        "min_strength": section.min_strength,
        "label_kinds": list(section.label_kinds),
        "sources": list(section.sources or []),
        "ties": list(section.ties),
    }


def membership_query(
    section: ComparisonsSection, freeze_id: int, *, comparison_id: int | None = None, rater_id: int | None = None
) -> tuple[str, Mapping[str, object]]:
    """Which comparisons are in the set of a freeze: rows of rater id and comparison ids, most comparisons first.

    Narrowed to one comparison or one rater where given.
    """
    narrowed = ""
    if comparison_id is not None:
        narrowed += " and comparison.id = %(comparison_id)s"
    if rater_id is not None:
        narrowed += " and comparison.rater_id = %(rater_id)s"
    reason = _reason(section, True, f"array({WITHDRAWN})", "had")
    statement = f"""
with pinned_keys as (select distinct split_key from ({PINNED}) pinned)
select comparison.rater_id, array_agg(comparison.id order by comparison.id)
from frozen_comparisons run
join comparisons comparison on comparison.id between run.first_id and run.last_id
join pairs pair on pair.id = comparison.pair_id
join dialogues dialogue on dialogue.id = pair.dialogue_id
join candidates a on a.pair_id = comparison.pair_id and a.side = 'a'
join candidates b on b.pair_id = comparison.pair_id and b.side = 'b'
left join pinned_keys on pinned_keys.split_key = dialogue.split_key
where run.freeze_id <= %(freeze_id)s and ({reason}) is null {narrowed}
group by comparison.rater_id
order by count(*) desc, comparison.rater_id
"""
    wanted = {"freeze_id": freeze_id, "comparison_id": comparison_id, "rater_id": rater_id}
    return statement, _parameters(section) | wanted
