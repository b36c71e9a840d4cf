"""CHAIR: how many of the objects a caption names are not in the image.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, section 3.  All rates in percent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.evaluate.objects import Mention, ObjectParser


@dataclass(frozen=True)
class CaptionScore:
    """One caption against the objects of its image; `hallucinated[i]` tells of `mentions[i]`."""

    mentions: tuple[Mention, ...]
    hallucinated: tuple[bool, ...]
    recalled: frozenset[str]
    truth: frozenset[str]
    length: int

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Hallucinating (0 or 1), hallucinated mentions, mentions, recalled objects, true objects."""
        return (
            int(any(self.hallucinated)),
            sum(self.hallucinated),
            len(self.mentions),
            len(self.recalled),
            len(self.truth),
        )


@dataclass(frozen=True)
class Chair:
    """CHAIR over a set of captions; rates in percent, `length` in words, `n` captions."""

    chair_s: float
    chair_i: float
    recall: float
    precision: float
    f1: float
    length: float
    n: int


def score_caption(caption: str, truth: Collection[str], parser: ObjectParser) -> CaptionScore:
    """Compare a caption with the categories of its image; ValueError if a category is not the parser's."""
    unknown = sorted(set(truth) - set(parser.categories))
    if unknown:
        raise ValueError(
            f"the ground truth names {unknown}, which are not among the parser's {len(parser.categories)} categories"
        )
    mentions = tuple(parser.mentions(caption))
    return CaptionScore(
        mentions,
        tuple(m.category not in truth for m in mentions),
        frozenset(m.category for m in mentions) & frozenset(truth),
        frozenset(truth),
        len(caption.split()),
    )


def rates(totals: Float[np.ndarray, "*resample 6"], n: int) -> dict[str, Float[np.ndarray, "*resample"]]:
    """CHAIR_S, CHAIR_I, recall, precision, F1 and length from summed `CaptionScore.counts` and lengths."""
    bad, wrong, named, recalled, true, words = np.moveaxis(np.asarray(totals, dtype=float), -1, 0)
    chair_i = 100 * np.divide(wrong, named, out=np.zeros_like(wrong), where=named > 0)
    recall = 100 * np.divide(recalled, true, out=np.zeros_like(wrong), where=true > 0)
    precision = np.where(named > 0, 100 - chair_i, 0.0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    named_rates = {"chair_s": 100 * bad / n, "chair_i": chair_i, "recall": recall, "precision": precision, "f1": f1}
    return {name: np.asarray(value) for name, value in (named_rates | {"length": words / n}).items()}


def table(scores: Sequence[CaptionScore]) -> Float[np.ndarray, "caption 6"]:
    """The counts that every rate is made of, a row a caption."""
    return np.array([(*s.counts, s.length) for s in scores], dtype=float)


def chair(scores: Sequence[CaptionScore]) -> Chair:
    """CHAIR over captions, pooled; ValueError without captions."""
    if not scores:
        raise ValueError("expected at least one scored caption, got none")
    return Chair(
        **{name: float(value) for name, value in rates(table(scores).sum(0), len(scores)).items()}, n=len(scores)
    )
