"""The SQL of imports: records are copied into temporary tables and moved on from there in whole sets.

`TABLES` are filled by `orchestrator/data/import_tables.py`, which then runs `CLASSIFY`, `WRITE` and `QUARANTINE` in
order, all in one transaction.
"""

from __future__ import annotations

LOCK_KEY = 0x1AB0_0001
"""Advisory lock under which imports write, one after another: two of the same file must not race."""

_STAGED = (
    "seq bigint, line bigint, raw text, source text, tranche text, task text, dialogue_identity text, "
    "external_id text, split_key text, pinned_split text, system text, parent_path text, pair_identity text, "
    "pinned_identity text, own_id bigint, own_created_at timestamptz, question text, purpose text, "
    "instruction_version text, side text, reason text, strength int, label_kind text, rater text, "
    "rater_kind text, source_value jsonb, duration_ms bigint, decided_at timestamptz, "
    "a_text text, a_history jsonb, a_contestant text, a_sampling jsonb, a_seed bigint, a_reply_tokens bigint, "
    "a_truncated bool, b_text text, b_history jsonb, b_contestant text, b_sampling jsonb, b_seed bigint, "
    "b_reply_tokens bigint, b_truncated bool"
)
TABLES = {
    "staged": _STAGED,
    "staged_messages": (
        "seq bigint, depth int, dialogue_identity text, path text, parent_path text, role text, content text"
    ),
    "staged_refusals": "seq bigint, line bigint, reason text, detail text, raw text, digest text",
}

# A pair is found by its identity; by the identity it would have as held out, so that importing a held-out file
# again without the option adds nothing; or as a pair that was shown in this very database.
CLASSIFY = [
    "drop table if exists pg_temp.decided",
    "drop table if exists pg_temp.new_pairs",
    "drop table if exists pg_temp.new_messages",
    """
    create temp table decided on commit drop as
    with found as (
        select s.seq, coalesce(by_identity.id, by_pin.id, by_row.id) as pair_id,
               row_number() over (partition by s.pair_identity, s.rater order by s.seq) as occurrence
        from staged s
        left join pairs by_identity on by_identity.identity_digest = s.pair_identity
        left join pairs by_pin on by_pin.identity_digest = s.pinned_identity
        left join pairs by_row on by_row.id = s.own_id and by_row.created_at = s.own_created_at
                              and by_row.identity_digest is null
    ), compared as (
        select f.seq, f.pair_id, f.occurrence, c.id as comparison_id,
               (c.reason, c.strength) is not distinct from (s.reason, s.strength::bigint)
               and c.side = case
                   when s.side = 'none'
                     or (shown.text = s.a_text and coalesce(shown.history, '[]') = coalesce(s.a_history, '[]'))
                   then s.side when s.side = 'a' then 'b' else 'a' end as same_answer
        from found f
        join staged s on s.seq = f.seq
        left join raters r on r.handle = s.rater
        left join comparisons c on c.pair_id = f.pair_id and c.rater_id = r.id
        left join candidates shown on shown.pair_id = f.pair_id and shown.side = 'a' and c.id is not null
    )
    select seq, pair_id,
           case when occurrence > 1 then 'repeat'
                when comparison_id is null then 'import'
                when same_answer then 'already_there'
                else 'repeat' end as outcome
    from compared
    """,
    "analyze decided",
    """
    insert into staged_refusals
    select s.seq, s.line, 'repeat', s.rater || ' has compared this pair before', s.raw,
           encode(sha256(convert_to(s.raw, 'UTF8')), 'hex')
    from staged s join decided d on d.seq = s.seq where d.outcome = 'repeat'
    """,
    """
    create temp table new_pairs on commit drop as
    select distinct on (s.pair_identity) s.seq, s.pair_identity
    from staged s join decided d on d.seq = s.seq
    where d.outcome = 'import' and d.pair_id is null
    order by s.pair_identity, s.seq
    """,
    "analyze new_pairs",
]

# Ids are drawn in the order of the file, so that an export gives the records in the order they came.
WRITE = [
    """
    insert into raters (handle, kind)
    select rater, rater_kind from (
        select distinct on (s.rater) s.rater, s.rater_kind, s.seq
        from staged s join decided d on d.seq = s.seq where d.outcome = 'import' order by s.rater, s.seq
    ) as named order by seq
    on conflict (handle) do nothing
    """,
    """
    insert into dialogues (source, tranche, task, external_id, identity_digest, split_key, pinned_split, system)
    select source, tranche, task, external_id, dialogue_identity, split_key, pinned_split, system from (
        select distinct on (s.dialogue_identity) s.seq, s.source, s.tranche, s.task, s.external_id,
               s.dialogue_identity, s.split_key, s.pinned_split, s.system
        from staged s join new_pairs n on n.seq = s.seq
        order by s.dialogue_identity, s.seq
    ) as opened order by seq
    on conflict (identity_digest) do nothing
    """,
    """
    create temp table new_messages on commit drop as
    select nextval(pg_get_serial_sequence('messages', 'id')) as id, fresh.* from (
        select once.* from (
            select distinct on (d.id, m.path)
                   d.id as dialogue_id, m.path, m.parent_path, m.role, m.content, m.seq, m.depth
            from staged_messages m
            join new_pairs n on n.seq = m.seq
            join dialogues d on d.identity_digest = m.dialogue_identity
            order by d.id, m.path, m.seq
        ) as once
        where not exists (
            select from messages x where x.dialogue_id = once.dialogue_id and x.client_key = once.path
        )
        order by once.seq, once.depth
    ) as fresh
    """,
    "analyze new_messages",
    """
    insert into messages (id, dialogue_id, parent_id, role, content, client_key)
    select n.id, n.dialogue_id, coalesce(fresh.id, there.id), n.role, n.content, n.path
    from new_messages n
    left join new_messages fresh on fresh.dialogue_id = n.dialogue_id and fresh.path = n.parent_path
    left join messages there on there.dialogue_id = n.dialogue_id and there.client_key = n.parent_path
    order by n.id
    """,
    """
    insert into pairs (dialogue_id, parent_id, question, purpose, instruction_version, identity_digest)
    select d.id, m.id, s.question, s.purpose, s.instruction_version, s.pair_identity
    from staged s
    join new_pairs n on n.seq = s.seq
    join dialogues d on d.identity_digest = s.dialogue_identity
    join messages m on m.dialogue_id = d.id and m.client_key = s.parent_path
    order by s.seq
    """,
    *(
        f"""
        insert into candidates (pair_id, side, snapshot_id, contestant, history, sampling, seed, text,
                                reply_tokens, truncated, completed_at)
        select p.id, '{side}', weights.id, case when weights.id is null then s.{side}_contestant end,
               s.{side}_history, s.{side}_sampling, s.{side}_seed, s.{side}_text, s.{side}_reply_tokens,
               s.{side}_truncated, clock_timestamp()
        from staged s
        join new_pairs n on n.seq = s.seq
        join pairs p on p.identity_digest = s.pair_identity
        left join (select digest, min(id) as id from artifacts where kind = 'snapshot' group by digest) weights
               on weights.digest = s.{side}_contestant
        order by s.seq
        """
        for side in ("a", "b")
    ),
    # The first record decides which reply is side a; others of the same pair may name them the other way round.
    """
    insert into comparisons (pair_id, rater_id, side, reason, strength, label_kind, source_value, duration_ms,
                             decided_at, import_id)
    select coalesce(d.pair_id, p.id), r.id,
           case when s.side = 'none' or n.seq = s.seq
                  or (shown.text = s.a_text and coalesce(shown.history, '[]') = coalesce(s.a_history, '[]'))
                then s.side when s.side = 'a' then 'b' else 'a' end,
           s.reason, s.strength, s.label_kind, s.source_value, s.duration_ms, s.decided_at, %(import_id)s
    from staged s
    join decided d on d.seq = s.seq
    left join new_pairs n on n.pair_identity = s.pair_identity
    left join pairs p on p.identity_digest = s.pair_identity
    join raters r on r.handle = s.rater
    left join candidates shown on shown.pair_id = coalesce(d.pair_id, p.id) and shown.side = 'a'
                                  and n.seq is distinct from s.seq
    where d.outcome = 'import'
    order by s.seq
    """,
]

QUARANTINE = """
    insert into quarantined_records (import_id, source, line, reason, detail, record, record_digest, ordinal)
    select %(import_id)s, %(source)s, line, reason, detail, raw, digest,
           row_number() over (partition by digest order by seq) - 1
    from staged_refusals order by seq
    on conflict on constraint uq_quarantined_records_record do nothing
    """
