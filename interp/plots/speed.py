"""How the rows of `interp bench table` compare with their references."""

import json
from pathlib import Path
from typing import Any

from interp.plots.style import CORRECT, HALLUCINATED, WIDE, finish, new_axes, save, styled

GREY = "#777777"


def _label(row: dict[str, Any], line: dict[str, Any]) -> str:
    """A line of the table in the figure; a method's heads are too long to be listed."""
    case = line["case"]
    if "heads=" in case:
        before, _, after = case.partition("heads=")
        case = before + after.partition(":")[2]
    return f"{row['name']}: {case}"


@styled
def draw_bench(path: Path) -> None:
    """Draw `SIZE.png` beside `SIZE.json`: every ratio with its range, and the aim where there is one."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [(row, line) for row in found["rows"] for line in row["lines"] if line["unit"] != "s"]
    if not lines:
        return
    ax = new_axes(None, 0.6 + 0.17 * len(lines), WIDE)
    for place, (_, line) in enumerate(lines):
        value, colour = line["value"], {True: CORRECT, False: HALLUCINATED, None: GREY}[line["reached"]]
        ax.plot([value["low"], value["high"]], [place, place], color=colour, linewidth=1.5)
        ax.plot(value["median"], place, "o", color=colour, markersize=4)
        if line["aim"] is not None:
            ax.plot(line["aim"], place, "|", color="black", markersize=9)
    ax.set_yticks(range(len(lines)), [_label(*pair) for pair in lines], fontsize=6.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set_xlabel("times the reference (median and range; bar: aim; blue: reached, orange: not)")
    ax.set_title(f"Speed on {found['size']}")
    finish(ax)
    save(ax, path.with_suffix(".png"))
