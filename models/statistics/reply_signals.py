"""What many replies, taken together, tell about a policy that has collapsed: repetition, stock replies, refusals.

Pure functions of texts and token ids; `models/policy/watch.py` uses them while PPO runs, `models/jobs/evaluate.py`
afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Four tokens repeat by chance in hardly any reply of a few hundred tokens; a loop repeats nothing else.
NGRAM_TOKENS = 4
# "I'm sorry, but I can't" is five words: enough to tell a stock opening from a common first word.
OPENING_WORDS = 5
# Fewer alike are chance, and what a single prompt was answered is nobody's business in a report.
STOCK_REPLIES = 3
# A refusal is said at the beginning; further on the same words are often about something else.
REFUSAL_CHARACTERS = 200
REFUSALS = (
    "i can't help",
    "i cannot help",
    "i can not help",
    "i can't assist",
    "i cannot assist",
    "i can't do that",
    "i cannot do that",
    "i can't provide",
    "i cannot provide",
    "i can't answer",
    "i cannot answer",
    "i can't tell you",
    "i cannot tell you",
    "i won't",
    "i will not",
    "i'm not going to",
    "i am not going to",
    "i'm sorry, but i",
    "i am sorry, but i",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i'm not comfortable",
    "i am not comfortable",
    "i don't feel comfortable",
    "i do not feel comfortable",
    "i must decline",
    "i have to decline",
    "as an ai",
    "i don't understand the question",
    "i do not understand the question",
)
"""Phrases of a refusal or of an evasion, in lower case. In languages other than English the share says nothing.

"I don't understand the question" is there because the paper's policies evaded sensitive questions with it (§5.4).
"""


def repeated_ngrams(ids: Sequence[int], n: int = NGRAM_TOKENS) -> float:
    """Share of a reply's n-grams that it has said before: 0 where all differ, near 1 where it loops.

    1, 2, 1, 2, 1, 2 has the pairs 12, 21, 12, 21, 12: 2 distinct of 5, so 0.6. A reply of fewer than n tokens
    repeats nothing.
    """
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    return 1 - len({tuple(ids[i : i + n]) for i in range(total)}) / total


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """Distinct word n-grams of all replies over their number (distinct-n); None where no reply has n words.

    It falls as more replies are read, since words recur: compare it between policies only on as many prompts.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.casefold().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None


def duplicates(texts: Sequence[str]) -> float:
    """Share of replies that say, word for word, what an earlier one said; case and white space don't count.

    Four replies of which three are alike: 2 of 4. No reply: 0.
    """
    if not texts:
        return 0.0
    return 1 - len({_normalised(text) for text in texts}) / len(texts)


def most_frequent(texts: Sequence[str]) -> tuple[str, float]:
    """The reply given most often and its share; the first of equals, as it was first said.

    Raises:
        ValueError: no replies.
    """
    return _most_frequent(texts, [_normalised(text) for text in texts])


def most_frequent_opening(texts: Sequence[str]) -> tuple[str, float]:
    """The most frequent first five words and their share among all replies; shorter replies count whole.

    Raises:
        ValueError: no replies.
    """
    openings = [" ".join(text.split()[:OPENING_WORDS]) for text in texts]
    return _most_frequent(openings, [_normalised(opening) for opening in openings])


def refuses(text: str) -> bool:
    """Whether one of the phrases in `REFUSALS` stands in the reply's first 200 characters.

    A list of phrases, not a judge: it misses refusals in other words, and counts a story that quotes one.
    """
    start = _normalised(text.replace("’", "'"))[:REFUSAL_CHARACTERS]
    return any(phrase in start for phrase in REFUSALS)


def refusal_share(texts: Sequence[str]) -> float:
    """Share of replies that refuse. No reply: 0."""
    return sum(map(refuses, texts)) / len(texts) if texts else 0.0


@dataclass(frozen=True)
class CollapseSignals:
    """Everything above for the replies to some prompts, one each, as it stands in an evaluation's results."""

    distinct_1: float | None
    distinct_2: float | None
    duplicates: float
    stock_reply: float
    """Share of the most frequent reply."""
    stock_reply_text: str | None
    stock_opening: float
    stock_opening_text: str | None
    repeated_ngrams: float
    refusals: float


def collapse_signals(texts: Sequence[str], repeated: Sequence[float]) -> CollapseSignals:
    """The signs of collapse; the text of a stock reply or opening is told where at least three prompts got it.

    Args:
        texts: one reply per prompt, at least one.
        repeated: `repeated_ngrams` of each.
    """
    reply, reply_share = most_frequent(texts)
    opening, opening_share = most_frequent_opening(texts)
    enough = STOCK_REPLIES - 0.5
    return CollapseSignals(
        distinct_1=distinct_ngrams(texts, 1),
        distinct_2=distinct_ngrams(texts, 2),
        duplicates=duplicates(texts),
        stock_reply=reply_share,
        stock_reply_text=reply if reply_share * len(texts) > enough else None,
        stock_opening=opening_share,
        stock_opening_text=opening if opening_share * len(texts) > enough else None,
        repeated_ngrams=sum(repeated) / len(texts),
        refusals=refusal_share(texts),
    )


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _most_frequent(texts: Sequence[str], keys: Sequence[str]) -> tuple[str, float]:
    if not texts:
        raise ValueError("no replies: the most frequent of none is not defined")
    key, count = Counter(keys).most_common(1)[0]
    return texts[keys.index(key)], count / len(texts)
