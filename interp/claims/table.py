"""All claims in their order, and what was found as JSON, as a table, and as a matrix of claims and models."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from interp.claims import sinks, vasparse, vhd
from interp.claims.claim import Claim, Measured, Verdict, shown
from interp.evaluate.bootstrap import Interval
from interp.folder import write_text

CLAIMS: tuple[Claim, ...] = (*vhd.CLAIMS, *vasparse.CLAIMS, *sinks.CLAIMS)
FILE = "claims.json"
SIGNS = {"holds": "holds", "does not hold": "**no**", "inconclusive": "inconclusive", "not measured": "-"}


@dataclass(frozen=True)
class Found:
    """What one model shows of a claim: the numbers by name, and the verdict."""

    measured: Measured
    verdict: Verdict


def _number(x: float) -> float | None:
    return None if math.isnan(x) else round(x, 6)


def as_json(claim: Claim, found: Found) -> dict[str, Any]:
    """A claim with what was found, as it stands in `claims.json`."""
    words = ("name", "citation", "where", "says", "measures", "criterion", "paper")
    numbers = {n: [_number(x) for x in (v.value, v.low, v.high)] for n, v in found.measured.items()}
    return {
        **{word: getattr(claim, word) for word in words},
        "measured": numbers,
        "verdict": found.verdict.outcome,
        "why": found.verdict.why,
    }


def read_found(path: Path) -> dict[str, Found]:
    """What a `claims.json` holds, by claim; nothing if there is none, ValueError if it is no such file."""
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["claims"]
        return {row["name"]: Found(_intervals(row["measured"]), Verdict(row["verdict"], row["why"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of interp claims; remove it and run again: {error}") from error


def _intervals(rows: Mapping[str, Sequence[float | None]]) -> dict[str, Interval]:
    return {n: Interval(*(math.nan if x is None else float(x) for x in row)) for n, row in rows.items()}


def write_found(out: Path, found: Mapping[str, Found], settings: Mapping[str, Any]) -> None:
    """Write `claims.json` and `claims.md`: the claims that are there, in their order."""
    rows = [as_json(c, found[c.name]) for c in CLAIMS if c.name in found]
    write_text(out / FILE, json.dumps({"settings": settings, "claims": rows}, indent=2) + "\n")
    write_text(out / "claims.md", table(found, settings))


def table(found: Mapping[str, Found], settings: Mapping[str, Any]) -> str:
    """The claims of one model as Markdown."""
    lines = [
        f"# The claims on {settings['model']}",
        "",
        f"`{settings['command']}`: {settings['n_images']} pictures of {settings['data']}, "
        f"{settings['n_texts']} texts of a kind.",
        "",
        "| claim | where | measured | found here, with 95 % intervals | in the paper | holds if | verdict | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        if claim.name in found:
            one = found[claim.name]
            numbers = "<br>".join(f"{n}: {_shown(v)}" for n, v in one.measured.items())
            cells = (
                claim.says,
                f"{claim.citation}, {claim.where}",
                claim.measures,
                numbers,
                claim.paper or "not given",
                claim.criterion,
            )
            lines.append(f"| {' | '.join(cells)} | {one.verdict.outcome} | {one.verdict.why} |")
    return "\n".join(lines) + "\n"


def _shown(value: Interval) -> str:
    if math.isnan(value.value):
        return "not defined"
    return f"{value.value:.3g}, no interval" if math.isnan(value.low) else shown(value)


def by_model(folders: Sequence[Path]) -> dict[str, dict[str, Found]]:
    """Model -> claim -> what was found, from folders that `interp claims` wrote; ValueError names one that is none."""
    each = {}
    for folder in folders:
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder} holds no {FILE}; expected folders that interp claims wrote")
        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))["settings"]
        each[settings["model"]] = read_found(folder / FILE)
    return each


def matrix(each: Mapping[str, Mapping[str, Found]]) -> str:
    """Claims by models as Markdown; the first number stands in the cell."""
    lines = ["| claim | " + " | ".join(each) + " |", "|---|" + "---|" * len(each)]
    for claim in CLAIMS:
        cells = [_cell(found.get(claim.name)) for found in each.values()]
        lines.append(f"| {claim.says} ({claim.name}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts(each: Mapping[str, Mapping[str, Found]]) -> dict[str, dict[str, tuple[str, str]]]:
    """Claim -> model -> its verdict and the first number; what was not measured is left out."""
    rows: dict[str, dict[str, tuple[str, str]]] = {claim.says: {} for claim in CLAIMS}
    for claim, (model, found) in product(CLAIMS, each.items()):
        one = found.get(claim.name)
        if one is not None and one.verdict.outcome != "not measured":
            rows[claim.says][model] = (one.verdict.outcome, _shown(next(iter(one.measured.values()))))
    return rows


def _cell(found: Found | None) -> str:
    if found is None or found.verdict.outcome == "not measured":
        return "-"
    return SIGNS[found.verdict.outcome] + "".join(f"<br>{_shown(v)}" for v in list(found.measured.values())[:1])
