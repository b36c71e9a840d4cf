"""Putting a report together: a run's folder in, one HTML file out."""

import base64
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from interp import __version__
from interp.experiments.config import at_least
from interp.experiments.manifest import read_manifest
from interp.experiments.records import CaptionRecord, ItemId, read_records
from interp.experiments.written import WrittenRun
from interp.folder import write_text
from interp.pictures import picture_uri
from interp.plots.names import readable
from interp.report.content import Look, captions_data, disagreeing_first
from interp.report.looks import looks_of
from interp.report.tables import Table, study_tables

TEMPLATE = "template"
SIDE = 160
"""Pixels of the longer side of a picture on the page."""
MAPS = 15_000_000
"""Bytes that maps may take, so that the file stays below 30 MB."""
SETTINGS = {
    "experiment": "experiment",
    "model": "model",
    "weights": "digest of the weights",
    "data": "data",
    "split": "split",
    "prompt": "prompt",
    "max_new_tokens": "most tokens of a caption",
    "top_k": "k of T-VHD",
    "seed": "seed",
    "dtype": "dtype",
    "device": "device",
}


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `interp report`."""

    run: str
    """Folder of a run; captions are shown of runs of interp study."""
    out: str | None = None
    """HTML file to write; report.html in the folder if None."""
    look: int = 50
    """Images whose captions are looked into, which loads the model; 0: only what the records hold."""
    top: int = 3
    """Heads that are shown for a token."""
    device: str = "cpu"
    """Where the model runs."""

    def __post_init__(self) -> None:
        at_least(0, look=self.look)
        at_least(1, top=self.top)


@dataclass(frozen=True)
class Report:
    """What was written, and how much of it was looked into."""

    path: Path
    n_images: int
    n_looked: int
    note: str

    def __str__(self) -> str:
        size = self.path.stat().st_size / 1e6
        return f"{self.note}\nwritten: {self.path} ({size:.1f} MB)"


def write_report(config: ReportConfig) -> Report:
    """Write the report of a run; ValueError if the folder holds none."""
    folder = Path(config.run)
    manifest = read_manifest(folder)
    records = read_records(folder / "captions.jsonl", CaptionRecord)
    looks: dict[tuple[ItemId, str], Look] = {}
    pictures: dict[ItemId, str] = {}
    note = "no captions in this run: tables and figures only"
    data = None
    if records:
        run = WrittenRun.read(folder, records[0].method)
        pictures, missing = _pictures(run, records)
        chosen = [i for i in disagreeing_first(records) if i in pictures][: config.look]
        if chosen:
            looks = fitting(looks_of(run.load(config.device), run, records, chosen, config.top, manifest["top_k"]))
        note = missing or _told(len({i for i, _ in looks}), len(pictures), config.look)
        data = captions_data(records, pictures, looks, manifest.get("top_k"))
    path = Path(config.out) if config.out else folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, rendered(folder.resolve().name, manifest, _tables(folder), figures(folder), data, note))
    return Report(path, len(pictures), len({i for i, _ in looks}), note)


def _told(looked: int, n_images: int, asked: int) -> str:
    if not looked:
        return "heads were not looked into: the page shows what the records hold (--look N looks into N images)"
    less = (
        f", fewer than the {asked} asked for, so that the file stays below 30 MB"
        if looked < min(asked, n_images)
        else ""
    )
    return f"heads were looked into for {looked} of {n_images} images{less}"


def _pictures(run: WrittenRun, records: Sequence[CaptionRecord]) -> tuple[dict[ItemId, str], str]:
    """The pictures that can be read, and why there are none if the data cannot be opened."""
    found = {}
    try:
        data = run.data
    except (ValueError, OSError) as error:
        return {}, f"the pictures are left out, and heads are not looked into, for the data cannot be opened: {error}"
    for i in dict.fromkeys(r.image_id for r in records):
        with suppress(ValueError, OSError):  # shown without its picture
            found[i] = picture_uri(data.load(i).image, SIDE)
    return found, ""


def fitting(looks: Iterable[tuple[tuple[ItemId, str], Look]]) -> dict[tuple[ItemId, str], Look]:
    """As many looks as there is room for their maps."""
    found: dict[tuple[ItemId, str], Look] = {}
    total = 0.0
    for key, look in looks:
        total += 0 if look.maps is None else look.maps.size * 4 / 3  # a byte a cell, in base64
        if total > MAPS:
            break
        found[key] = look
    return found


def _tables(folder: Path) -> list[Table]:
    path = folder / "summary.json"
    if not path.is_file():
        return []
    summary = json.loads(path.read_text(encoding="utf-8"))
    return study_tables(summary) if "t_vhd" in summary else []


def figures(folder: Path) -> list[tuple[str, str]]:
    """The figures in a run's folder: what each is called, and itself as a data URI."""
    found = []
    for path in sorted(folder.glob("*.png")):
        name = path.stem.removeprefix("heads-")
        title = f"heads that {readable(name.replace('-', ':', 1) if '=' in name else name)} chose"
        title = title if path.stem.startswith("heads-") else path.stem.replace("_", " ")
        found.append((title, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"))
    return found


def rendered(
    title: str,
    manifest: dict[str, Any],
    tables: Sequence[Table],
    figures: Sequence[tuple[str, str]],
    data: dict[str, Any] | None,
    note: str,
) -> str:
    """The page; everything that is not this package's own is escaped."""
    loader = PackageLoader("interp.report", TEMPLATE)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    own = {kind: Markup(loader.get_source(environment, f"report.{kind}")[0]) for kind in ("css", "js")}
    settings = {label: manifest[key] for key, label in SETTINGS.items() if manifest.get(key) is not None}
    settings |= {"images": len(manifest.get("image_ids", ())), "interp": __version__}
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    return environment.get_template("report.html").render(
        title=title,
        settings={**settings, "versions": versions},
        methods=manifest.get("methods", {}),
        tables=tables,
        figures=figures,
        data=data,
        note=note,
        **own,
    )
