"""POPE: yes/no questions about objects.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023.  "Yes" is positive.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pope:
    """POPE over a set of questions; rates in percent; `unparsed` answers say neither yes nor no in so many words."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsed: int
    n: int


def says_yes(answer: str) -> bool:
    """The customary reading: "no" or "not" before the first full stop means no, anything else yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def pope(answers: Sequence[str], labels: Sequence[bool]) -> Pope:
    """Score answers against labels (True: the object is there)."""
    if len(answers) != len(labels) or not labels:
        raise ValueError(
            f"expected one label for each answer and at least one, got {len(answers)} answers and {len(labels)} labels"
        )
    said = [says_yes(a) for a in answers]
    hits = sum(s and y for s, y in zip(said, labels, strict=True))
    right = sum(s == y for s, y in zip(said, labels, strict=True))
    precision, recall = 100 * hits / max(sum(said), 1), 100 * hits / max(sum(labels), 1)
    return Pope(
        accuracy=100 * right / len(labels),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / max(precision + recall, 1e-9),
        yes_ratio=100 * sum(said) / len(labels),
        unparsed=sum(not re.search(r"\b(yes|no|not)\b", a, re.IGNORECASE) for a in answers),
        n=len(labels),
    )
