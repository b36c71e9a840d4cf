"""Which generated tokens a stretch of text came from."""

import re
from collections.abc import Callable, Sequence


def token_ends(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[int]:
    """For each token, the length of the text decoded up to and with it (leading white space not counted)."""
    lead = len(decode(tokens)) - len(decode(tokens).lstrip())
    ends = [max(0, len(decode(tokens[: i + 1])) - lead) for i in range(len(tokens))]
    for i in reversed(range(len(ends) - 1)):
        ends[i] = min(ends[i], ends[i + 1])  # a character that is still in pieces decodes to more than it will be
    return ends


def tokens_of(ends: Sequence[int], start: int, end: int) -> range:
    """The tokens that wrote `text[start:end]`; empty where there are none."""
    inside = [i for i, stop in enumerate(ends) if stop > start and (ends[i - 1] if i else 0) < end]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, cut after `.`, `!` or `?` and at line ends."""
    return [(m.start(), m.end()) for m in re.finditer(r"[^\s.!?][^.!?\n]*[.!?]*", text)]
