"""The SQL of exports: comparisons with everything that belongs to them, and the prompts above their pairs."""

from __future__ import annotations

COMPARISONS = """
    select p.parent_id, p.id as pair_id, p.created_at as pair_created_at, p.identity_digest as pair_identity,
           d.id as dialogue_id, d.created_at as dialogue_created_at, d.identity_digest as dialogue_identity,
           d.source, d.tranche, d.task, d.external_id, d.pinned_split, d.system,
           p.question, p.purpose, p.instruction_version,
           a.text as a_text, a.history as a_history, coalesce(a_weights.digest, a.contestant) as a_contestant,
           a.sampling as a_sampling, a.seed as a_seed, a.reply_tokens as a_reply_tokens,
           a.truncated as a_truncated,
           b.text as b_text, b.history as b_history, coalesce(b_weights.digest, b.contestant) as b_contestant,
           b.sampling as b_sampling, b.seed as b_seed, b.reply_tokens as b_reply_tokens,
           b.truncated as b_truncated,
           c.side, c.reason, c.strength, c.label_kind, r.handle as rater, r.kind as rater_kind, c.source_value,
           exists (select from withdrawals w where w.rater_id = c.rater_id) as withdrawn,
           exists (select from erased_comparisons e where e.comparison_id = c.id) as erased,
           c.duration_ms, coalesce(c.decided_at, case when c.import_id is null then c.created_at end) as decided_at
    from comparisons c
    join pairs p on p.id = c.pair_id
    join dialogues d on d.id = p.dialogue_id
    join candidates a on a.pair_id = p.id and a.side = 'a'
    join candidates b on b.pair_id = p.id and b.side = 'b'
    join raters r on r.id = c.rater_id
    left join artifacts a_weights on a_weights.id = a.snapshot_id
    left join artifacts b_weights on b_weights.id = b.snapshot_id
    where (%(source)s is null or d.source = %(source)s)
      and (%(question)s is null or p.question = %(question)s)
      and (%(label_kind)s is null or c.label_kind = %(label_kind)s)
    order by c.id
    """
"""The time of a choice made here is that of its row, where the page did not say."""

PROMPTS = """
    with recursive path as (
        select m.id as leaf, m.parent_id, m.role, m.content, 0 as height
        from messages m where m.id = any(%s)
        union all
        select path.leaf, m.parent_id, m.role, m.content, path.height + 1
        from path join messages m on m.id = path.parent_id
    )
    select leaf, jsonb_agg(jsonb_build_object('role', role, 'content', content) order by height desc)
    from path group by leaf
    """
"""The messages from the opening of the dialogue down to each given message."""
