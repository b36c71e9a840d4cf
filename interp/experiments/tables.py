"""A run's records as pandas tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class RunTables:
    """A run by `interp study`, as tables.

    `captions`: a row for each image and method.  `words`: a row for each object mention (`tokens.jsonl`).  `methods`: a
    row for each method, its rates (percent) and, as `NAME_low` and `NAME_high`, their 95 % intervals.  `manifest` is
    what decided the results.
    """

    captions: pd.DataFrame
    words: pd.DataFrame
    methods: pd.DataFrame
    manifest: dict[str, Any]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that a run may be writing to."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_run(folder: str | Path) -> RunTables:
    """Read a finished or an unfinished run; ValueError if the folder holds none."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} holds no run: expected a manifest.json, as interp study writes it")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    captions, words = (_whole_lines(folder / f"{name}.jsonl") for name in ("captions", "tokens"))
    methods = {}
    if (folder / "summary.json").is_file():
        for name, values in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["methods"].items():
            row = {key: value for key, value in values.items() if isinstance(value, int | float)}
            for key, (low, high) in values["interval"].items():
                row |= {f"{key}_low": low, f"{key}_high": high}
            methods[name] = row
    return RunTables(
        pd.DataFrame(captions),
        pd.DataFrame(words),
        pd.DataFrame.from_dict(methods, orient="index").rename_axis("method"),
        manifest,
    )
