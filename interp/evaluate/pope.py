"""POPE: yes/no questions about objects; and OPOPE, the same questions put to captions.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023.  "Yes" is positive.
OPOPE: Chen et al., "HALC", ICML 2024, arXiv 2403.00425: a caption says yes if it names the object.  Its script looks
for the word as a substring ("car" in "carrot"); here the object parser decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.evaluate.answers import Rule, read_answer, says_yes, understood

BETA = 0.2


@dataclass(frozen=True)
class Pope:
    """POPE over a set of questions; rates in percent.

    `f_beta` weighs precision (beta 0.2), as OPOPE does.  `unparsed` answers say neither yes nor no to a reader, and
    count as wrong by the rule `reader`, as yes by the customary script's; `rules_differ` counts the answers that the
    two rules read differently.  `missing` ones were not given and count as wrong.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    f_beta: float
    yes_ratio: float
    unparsed: int
    rules_differ: int
    missing: int
    n: int


def counted(answer: str | bool | None, label: bool, rule: Rule = "reader") -> tuple[int, int, int, int, int]:
    """Of an answer: said yes and rightly, said yes, should be yes, right, given.

    One that is missing, or that says neither yes nor no, is never right.
    """
    said = read_answer(answer, rule) if isinstance(answer, str) else answer
    return (
        int(said is True and label),
        int(said is True),
        int(label),
        int(said is not None and said == label),
        int(answer is not None),
    )


def rates(totals: Float[np.ndarray, "*resample 5"], n: Float[np.ndarray, "*resample"]) -> dict[str, np.ndarray]:
    """Accuracy, precision, recall, F1, F of beta 0.2 and yes-ratio from summed `counted`, over `n` questions."""
    hits, yes, true, right, _ = np.moveaxis(np.asarray(totals, dtype=float), -1, 0)
    n = np.maximum(n, 1)
    precision, recall = 100 * hits / np.maximum(yes, 1), 100 * hits / np.maximum(true, 1)

    def f(beta: float) -> Any:
        return (1 + beta**2) * precision * recall / np.maximum(beta**2 * precision + recall, 1e-9)

    found = {"accuracy": 100 * right / n, "precision": precision, "recall": recall, "f1": f(1.0), "f_beta": f(BETA)}
    return {name: np.asarray(value) for name, value in (found | {"yes_ratio": 100 * yes / n}).items()}


def pope(answers: Sequence[str | bool | None], labels: Sequence[bool], rule: Rule = "reader") -> Pope:
    """Score answers (a text, or yes as True, None if missing) against labels (True: the object is there)."""
    if len(answers) != len(labels) or not labels:
        raise ValueError(
            f"expected one label for each answer and at least one, got {len(answers)} answers and {len(labels)} labels"
        )
    totals = np.sum([counted(a, y, rule) for a, y in zip(answers, labels, strict=True)], 0, dtype=float)
    read = [understood(a) for a in answers if isinstance(a, str)]
    by_script = [says_yes(a) for a in answers if isinstance(a, str)]
    return Pope(
        **{name: float(value) for name, value in rates(totals, np.asarray(float(len(labels)))).items()},
        unparsed=sum(said is None for said in read),
        rules_differ=sum(ours != theirs for ours, theirs in zip(read, by_script, strict=True)),
        missing=sum(a is None for a in answers),
        n=len(labels),
    )
