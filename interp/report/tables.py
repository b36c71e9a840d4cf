"""The tables of a report, from the `summary.json` of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RATES = {"chair_s": "CHAIR_S (%)", "chair_i": "CHAIR_I (%)", "recall": "recall (%)", "length": "length (words)"}
SIGHT = {"d_prime": "d'", "criterion": "criterion"}
AUROCS = {
    "auroc": "T-VHD",
    "auroc_position_controlled": "T-VHD at the same position",
    "auroc_position": "position alone (earlier is higher)",
    "auroc_probability": "token probability alone",
    "auroc_sentence": "mean T-VHD of the sentence",
}


@dataclass(frozen=True)
class Table:
    """A table with what it is of, its header and its rows of text."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float | None, ends: Sequence[float | None] | None, digits: int, signed: bool = False) -> str:
    """A value with its interval."""
    form = f"{'+' if signed else ''}.{digits}f"
    if value is None:
        return "-"
    if ends is None or any(end is None for end in ends):
        return f"{value:{form}}"
    return f"{value:{form}} [{', '.join(f'{end:{form}}' for end in ends if end is not None)}]"


def study_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Rates, differences from greedy, sight and criterion, and how well T-VHD tells hallucinated words."""
    methods = summary["methods"]
    rows = [[n, *(number(v[c], v["interval"][c], 1) for c in RATES), str(v["empty"])] for n, v in methods.items()]
    of = f"{summary['n_images']} images; 95 % bootstrap intervals over images"
    found = [Table("Hallucination and recall", of, ["method", *RATES.values(), "empty captions"], rows)]
    others = {n: v for n, v in methods.items() if "versus_greedy" in v}
    if others:
        rows = [
            [n, *(_ended(v["versus_greedy"][c], 1) for c in RATES), f"{v['mcnemar']['better']}/{v['mcnemar']['worse']}"]
            for n, v in others.items()
        ]
        header = ["method", *RATES.values(), "captions fixed/broken"]
        found.append(Table("Minus greedy", "paired, on the same images", header, rows))
    rows = [[n, *(number(v.get(c), v["interval"].get(c), 2) for c in SIGHT)] for n, v in methods.items()]
    note = "naming present against absent objects: d' is sight, a higher criterion names less"
    found.append(Table("Sight", note, ["method", *SIGHT.values()], rows))
    t = summary["t_vhd"]
    if t["auroc"] is not None:
        rows = [[label, number(t[key], (t["interval"] or {}).get(key), 2)] for key, label in AUROCS.items()]
        note = (
            f"k = {t['k']}; {t['n_hallucinated']} hallucinated and {t['n_correct']} correct object words of greedy "
            "captions; P(a correct word scores higher), 0.5 is chance"
        )
        found.append(Table("What tells hallucinated words", note, ["score", "AUROC"], rows))
    return found


def _ended(value: Mapping[str, float | None], digits: int) -> str:
    return number(value["value"], (value["low"], value["high"]), digits, signed=True)
