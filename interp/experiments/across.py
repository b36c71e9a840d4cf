"""`interp across`: methods by models from the folders of studies, each column headed by what hallucinations come from.

A cell is a method minus greedy on the same images of one model, paired; nothing is computed anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp import plots
from interp.evaluate.bootstrap import Interval
from interp.experiments.cause_report import CAUSES
from interp.experiments.compared import BASELINE
from interp.experiments.manifest import read_manifest
from interp.experiments.report import cell
from interp.folder import write_text

MEASURES = {"chair_s": ("CHAIR_S", 1), "chair_i": ("CHAIR_I", 1), "recall": ("recall", 1), "d_prime": ("d'", 2)}
"""What is compared, how it is called, and its digits."""


@dataclass(frozen=True)
class Column:
    """One model's study: its images, greedy's rates, each method minus greedy, and what hallucinations follow."""

    images: int
    greedy: dict[str, float]
    minus_greedy: dict[str, dict[str, Interval]]
    cause: str


@dataclass(frozen=True)
class Across:
    """The columns by model, and the methods in the order of the first study that has them."""

    columns: dict[str, Column]
    methods: tuple[str, ...]

    @classmethod
    def read(cls, studies: Sequence[Path], causes: Sequence[Path] = ()) -> "Across":
        """Read finished studies of different models, and runs of `interp cause`; ValueError names what does not fit."""
        told = {_model(folder, "cause"): _told(folder) for folder in causes}
        columns: dict[str, Column] = {}
        for folder in studies:
            model = _model(folder, "study")
            if model in columns:
                raise ValueError(f"{folder} is a second study of {model}; a column is of one study")
            columns[model] = _column(folder, told.pop(model, "cause not measured"))
        if told:
            raise ValueError(f"there is no study of {', '.join(told)}, whose cause was given")
        return cls(columns, tuple(dict.fromkeys(m for c in columns.values() for m in c.minus_greedy)))

    def differences(self, measure: str) -> dict[str, dict[str, Interval]]:
        """Method -> model -> the difference from greedy; a method that was not run on a model is left out there."""
        return {
            method: {n: c.minus_greedy[method][measure] for n, c in self.columns.items() if method in c.minus_greedy}
            for method in self.methods
        }

    def heads(self) -> dict[str, str]:
        """What stands under each model's name."""
        return {name: f"{column.cause}; {column.images} images" for name, column in self.columns.items()}

    def __str__(self) -> str:
        """A table in Markdown for each measure."""
        lines = []
        for measure, (label, digits) in MEASURES.items():
            heads = [f"{name}<br>{text}" for name, text in self.heads().items()]
            lines += [f"| {label} minus greedy, paired | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
            greedy = [f"{column.greedy[measure]:.{digits}f}" for column in self.columns.values()]
            lines.append(f"| {BASELINE} itself | " + " | ".join(greedy) + " |")
            for method, values in self.differences(measure).items():
                found = [values.get(name) for name in self.columns]
                cells = ["" if v is None else _bold(v, cell(v, signed=True, digits=digits)) for v in found]
                lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
            lines.append("")
        return "\n".join(lines).rstrip()

    def write(self, out: Path) -> None:
        """Write `across.json`, `across.md` and the figure."""
        out.mkdir(parents=True, exist_ok=True)
        found = {
            "heads": self.heads(),
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "chair_s": {m: {n: asdict(v) for n, v in row.items()} for m, row in self.differences("chair_s").items()},
        }
        write_text(out / "across.json", json.dumps(found, indent=2) + "\n")
        write_text(out / "across.md", f"{self}\n")
        plots.draw_across(out)


def _bold(value: Interval, text: str) -> str:
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def _model(folder: Path, experiment: str) -> str:
    """The model of a run; ValueError if the folder holds a run of another kind."""
    manifest = read_manifest(folder)
    if manifest.get("experiment") != experiment:
        raise ValueError(f"{folder} holds a run of {manifest.get('experiment')}, expected one of interp {experiment}")
    return str(manifest["model"])


def _found(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {what} has not ended; run it again")
    return json.loads(path.read_text(encoding="utf-8"))


def _told(folder: Path) -> str:
    """What the hallucinated words of a run of `interp cause` follow, in words."""
    found: Mapping[str, Any] = _found(folder / "cause.json", "interp cause")["follows"]["hallucinated"]
    if not found["n"]:
        return "no hallucinated word was asked"
    shares = {name: found["shares"][name]["value"] for name in CAUSES}
    parts = [f"{name} {value:.0f} %" for name, value in sorted(shares.items(), key=lambda s: -s[1]) if value >= 0.5]
    return f"follow {', '.join(parts)} of {found['n']} words"


def _column(folder: Path, cause: str) -> Column:
    summary = _found(folder / "summary.json", "interp study")
    methods: dict[str, Any] = summary["methods"]
    if any(measure not in methods[BASELINE] for measure in MEASURES):
        raise ValueError(f"{folder} is no study of captions; expected CHAIR and d' in its summary.json")
    differences = {
        name: {measure: _interval(values["versus_greedy"][measure]) for measure in MEASURES}
        for name, values in methods.items()
        if "versus_greedy" in values
    }
    return Column(summary["n_images"], {m: methods[BASELINE][m] for m in MEASURES}, differences, cause)


def _interval(values: Mapping[str, float | None]) -> Interval:
    value, low, high = (float("nan") if (x := values[end]) is None else x for end in ("value", "low", "high"))
    return Interval(value, low, high)
