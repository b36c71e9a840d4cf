"""A run's records as pandas tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.experiments.manifest import read_manifest
from interp.experiments.records import CaptionRecord, WordRecord, read_records, to_json


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


def read_run(folder: str | Path) -> RunTables:
    """Read a finished or an unfinished run; ValueError if the folder holds none, or one of another command."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    made_by = manifest.get("experiment", "study")
    if made_by != "study":
        raise ValueError(f"{folder} holds a run of another kind ({made_by}); read_run reads runs of interp study")
    captions = read_records(folder / "captions.jsonl", CaptionRecord)
    words = read_records(folder / "tokens.jsonl", WordRecord)
    return RunTables(
        pd.DataFrame([to_json(r) for r in captions]),
        pd.DataFrame([to_json(r) for r in words]),
        pd.DataFrame.from_dict(_rates(folder / "summary.json"), orient="index").rename_axis("method"),
        manifest,
    )


def _rates(path: Path) -> dict[str, dict[str, float]]:
    """The rates of each method with the ends of their intervals; none before the run has ended."""
    if not path.is_file():
        return {}
    found = {}
    try:
        for name, values in json.loads(path.read_text(encoding="utf-8"))["methods"].items():
            found[name] = {key: value for key, value in values.items() if isinstance(value, int | float)}
            for key, (low, high) in values["interval"].items():
                found[name] |= {f"{key}_low": low, f"{key}_high": high}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no summary of interp study, or only half of one; remove it and run the study again, which "
            "writes it anew from the records"
        ) from error
    return found
