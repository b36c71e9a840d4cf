"""`interp bench table` and `interp bench ranks`: rows by name, and a file of results that goes on where it stopped."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from interp.bench import decoding, looking, starting
from interp.bench.clock import machine
from interp.bench.ranks import Simulated, simulate
from interp.bench.rows import Bench, Line, Row
from interp.bench.sizes import SIZES
from interp.folder import write_text
from interp.plots.speed import draw_bench

CPU_ONLY = ("tiny", "testbed")
ROWS = {
    row.name: row
    for row in (
        Row("greedy", "greedy decoding", "transformers' generate, same model", "at most 1.02 x", decoding.greedy),
        Row("compiled", "greedy, steps compiled", "greedy", "0.9 x", decoding.compiled, ("testbed", "smollm2")),
        Row("vhr", "VHR, selection included", "greedy", "1.05 x; testbed 1.15 x", decoding.vhr),
        Row("edits", "head edits of every kind", "greedy", "1.05 x", decoding.edits),
        Row("two-streams", "VCD, M3ID, PAI", "greedy", "1.9 x", decoding.two_streams),
        Row("vasparse", "VASparse, paper preset", "greedy; VCD", "1.2 x; 0.6 x", decoding.vasparse),
        Row("opera", "OPERA", "transformers' beam search, 5 beams", "1.5 x", decoding.opera),
        Row("evicting", "methods that drop keys", "greedy", "below 1 x, memory in proportion", decoding.evicting),
        Row("study", "images a second, batch 16", "batch 1", "3 x", decoding.study),
        Row("capture", "head outputs, all layers", "a plain forward pass", "1.15 x", looking.capture),
        Row("t-vhd", "T-VHD of a caption", "two forward passes; step by step", "1.2 x; 20 x faster", looking.t_vhd),
        Row("ablation", "every head silenced", "a pass for each head", "3 x faster", looking.ablation),
        Row(
            "attribution", "attribution patching", "a pass for each head", "50 x faster", looking.attribution, CPU_ONLY
        ),
        Row("attention", "attention statistics", "eager with maps; sdpa", "1/8, 1 x, 3 x", looking.attention, CPU_ONLY),
        Row("nnsight", "a traced pass", "plain hooks", "known", looking.nnsight_price, CPU_ONLY),
        Row("growth", "twice the size", "once", "linear", looking.growth, CPU_ONLY),
        Row(
            "starting",
            "interp --help; import interp",
            "torch and transformers",
            "0.5 s; 0.3 s",
            starting.starting,
            CPU_ONLY,
        ),
    )
}
"""What can be measured, in the order of the table."""


@dataclass(frozen=True)
class BenchTable:
    """Measure rows of the table on one size of model, or go on with a measurement that was interrupted."""

    rows: str = "all"
    """Names joined by commas: greedy, compiled, vhr, edits, two-streams, vasparse, opera, evicting, study, ..."""
    size: str = "testbed"
    """tiny, tiny-7b, testbed, testbed-smollm2, smollm2 or 7b."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    threads: int = 1
    """Threads of torch: with one, processor time is comparable on a machine that others use."""
    repeats: int = 5
    """Timed turns."""
    tokens: int | None = None
    """New tokens of a caption; the size's own if None."""
    batches: str | None = None
    """Batch sizes joined by commas; the size's own if None."""
    again: bool = False
    """Measure rows again that are there."""
    out: str = "figures/bench"
    """Folder for SIZE.json and SIZE.png."""

    def __post_init__(self) -> None:
        known = [*ROWS, "all"]
        wrong = [name for name in self.rows.split(",") if name not in known]
        if wrong:
            raise ValueError(f"rows are {', '.join(known)}, got {', '.join(wrong)}")
        if self.size not in SIZES:
            raise ValueError(f"size is one of {', '.join(SIZES)}, got {self.size!r}")
        idle = [name for name in self.rows.split(",") if name in ROWS and self.size not in ROWS[name].sizes]
        if idle:
            raise ValueError(f"{', '.join(idle)} is not measured at size {self.size}; leave it out of rows")
        if min(self.repeats, self.threads, 1 if self.tokens is None else self.tokens) < 1:
            raise ValueError("repeats, threads and tokens are at least 1")

    def __call__(self) -> None:
        """Measure what is missing, row by row; each is written when it is done."""
        torch.set_num_threads(self.threads)
        size, device = SIZES[self.size], torch.device(self.device)
        path = Path(self.out) / f"{self.size}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        rows = {row["name"]: row for row in there.get("rows", [])}
        asked = [
            r for r in ROWS.values() if self.size in r.sizes and (self.rows == "all" or r.name in self.rows.split(","))
        ]
        missing = [row for row in asked if self.again or row.name not in rows]
        bench = None
        for row in missing:
            if bench is None:
                bench = self._bench(device)
            lines = row.run(bench)
            rows[row.name] = self._written(row, lines, device)
            self._print(row, lines)
            found = {"size": size.name, "about": size.about, "note": NOTE, "rows": [rows[n] for n in ROWS if n in rows]}
            write_text(path, json.dumps(found, indent=1) + "\n")
        draw_bench(path)

    def _bench(self, device: torch.device) -> Bench:
        size = SIZES[self.size]
        if self.batches is not None:
            size = replace(size, batches=tuple(map(int, self.batches.split(","))))
        torch.manual_seed(0)
        return Bench(size.make(device), size, self.repeats, self.tokens or size.tokens)

    def _written(self, row: Row, lines: list[Line], device: torch.device) -> dict[str, Any]:
        about = {"name": row.name, "what": row.what, "reference": row.reference, "aim": row.aim}
        settings = {"repeats": self.repeats, "tokens": self.tokens or SIZES[self.size].tokens}
        return about | settings | {"machine": machine(device), "lines": [line.plain() for line in lines]}

    def _print(self, row: Row, lines: list[Line]) -> None:
        for line in lines:
            wall = "" if line.wall is None else f"  wall {line.wall.median:.2f}"
            aim = "" if line.aim is None else f"  aim {line.aim:g} {'reached' if line.reached else 'not reached'}"
            v = line.value
            print(
                f"{row.name:12} {line.case}: {v.median:.3f} [{v.low:.3f}, {v.high:.3f}] {line.unit}{wall}{aim}",
                flush=True,
            )


NOTE = (
    "ratios of processor time (on a GPU: of the wall), each repetition against the one beside it; other work ran on "
    "the machine, see load_average"
)


@dataclass(frozen=True)
class BenchRanks:
    """Run a study's engine in many processes with a stand-in for the model, and compare with one process."""

    ranks: int = 8
    """Processes."""
    images: int = 128
    """Items."""
    batch_size: int = 2
    """Items of a batch."""
    seconds: float = 0.05
    """What the stand-in takes for a batch."""
    straggler: float = 4.0
    """How many times as long the last rank takes."""
    disk_seconds: float = 0.01
    """What each append to a file takes more than it does here."""
    kills: int = 2
    """How often a rank is killed and the launch started again."""
    out: str | None = None
    """A file for the result as JSON."""

    def __post_init__(self) -> None:
        if min(self.ranks, self.images, self.batch_size) < 1 or min(self.seconds, self.disk_seconds, self.kills) < 0:
            raise ValueError("ranks, images and batch_size are at least 1, seconds and kills at least 0")

    def __call__(self) -> None:
        """Simulate, print and write."""
        settings = {k: v for k, v in asdict(self).items() if k != "out"}
        found = simulate(Simulated(**settings))
        print(json.dumps(found, indent=1))
        if self.out is not None:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(self.out), json.dumps({"settings": settings, "found": found}, indent=1) + "\n")
