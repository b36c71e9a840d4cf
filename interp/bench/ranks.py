"""Many ranks of one run on one machine: the engine as it is, a stand-in for the model, and everything that goes wrong.

Ranks are processes forked from this one, and meet at a barrier as those of a launcher do.  A batch takes a while
without using the processor, so that 64 of them fit on two cores.  One rank is slow, every read and write of the shared
folder takes longer, and ranks are killed: the launcher then ends the others and starts the launch again.
"""

import io
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.experiments.config import RunConfig
from interp.experiments.engine import Job, Run, Shard
from interp.experiments.manifest import Manifest
from interp.experiments.records import LikelihoodRecord

NAMES = ("greedy", "vhr", "vcd")


@dataclass(frozen=True)
class Simulated:
    """What is simulated; see `interp bench ranks`."""

    ranks: int
    images: int
    batch_size: int
    seconds: float
    straggler: float
    disk_seconds: float
    kills: int

    def pace(self, rank: int) -> float:
        """How many times as long a rank takes; the last one is slow."""
        return self.straggler if self.ranks > 1 and rank == self.ranks - 1 else 1.0


@dataclass(frozen=True)
class Ranks(Shard):
    """A rank among forked ones, and how long it has waited for others, and when."""

    barrier: Any = None
    waits: list[float] = field(default_factory=list)

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            begun = time.monotonic()
            self.barrier.wait()
            self.waits.append(time.monotonic() - begun)


def _job(settings: Simulated, rank: int) -> Job[LikelihoodRecord]:
    def load(item: Any) -> Any:
        time.sleep(settings.disk_seconds)
        return item

    def work(name: str, samples: Sequence[Any]) -> list[LikelihoodRecord]:
        time.sleep(settings.seconds * settings.pace(rank) + settings.disk_seconds)
        return [LikelihoodRecord(i, name, float(i) + NAMES.index(name) / 10, 1) for i in samples]

    return Job("x", LikelihoodRecord, list(range(settings.images)), NAMES, load, work)


def _rank(settings: Simulated, out: Path, rank: int, world: int, barrier: Any) -> None:
    """One process of the launch."""
    shard = Ranks(rank, world, barrier)
    with Run.opened(out, Manifest.of(simulated=settings.images), shard) as run:
        run.made(_job(settings, rank), RunConfig(batch_size=settings.batch_size))
    # waits: the folder claimed, work begins, work done, the run closed
    (out.parent / f"waits.{rank}.json").write_text(json.dumps(shard.waits), encoding="utf-8")


def _launch(settings: Simulated, out: Path, kill_after: float | None) -> bool:
    """Run all ranks, and kill them in some order after so many seconds.  Whether all came through."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(settings.ranks)
    ranks = [
        context.Process(target=_rank, args=(settings, out, rank, settings.ranks, barrier))
        for rank in range(settings.ranks)
    ]
    for process in ranks:
        process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        for process in random.Random(int(kill_after * 1000)).sample(ranks, len(ranks)):
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
    for process in ranks:
        process.join()
    return all(process.exitcode == 0 for process in ranks)


def simulate(settings: Simulated) -> dict[str, Any]:
    """Compare a launch with one process: the same records, and how long ranks waited for each other at the end."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # of progress bars
        one, many = Path(folder) / "one" / "run", Path(folder) / "many" / "run"
        alone = Simulated(**(vars(settings) | {"ranks": 1, "seconds": 0.0, "disk_seconds": 0.0}))
        one.parent.mkdir()
        many.parent.mkdir()
        _rank(alone, one, 0, 1, None)
        each = len(NAMES) * settings.images / settings.batch_size / settings.ranks * settings.seconds
        finished = [_launch(settings, many, 0.3 + each * (k + 1) / (settings.kills + 2)) for k in range(settings.kills)]
        partly = sum(len(path.read_text().splitlines()) for path in many.glob("x*.jsonl"))
        begun = time.monotonic()
        finished.append(_launch(settings, many, None))
        wall = time.monotonic() - begun
        waits = [json.loads((many.parent / f"waits.{r}.json").read_text())[2:3] for r in range(settings.ranks)]
        left = sorted(path.name for path in many.iterdir())
        same = (one / "x.jsonl").read_text() == (many / "x.jsonl").read_text()
    slow_batch = settings.seconds * max(1.0, settings.straggler) + (settings.batch_size + 1) * settings.disk_seconds
    longest = max((w[0] for w in waits if w), default=0.0)
    return {
        "launches": len(finished),
        "came_through": finished,
        "records_when_the_last_began": partly,
        "same_records_as_one_process": same,
        "files_left": left,
        "seconds_of_the_last_launch": round(wall, 3),
        "longest_wait_for_another_rank": round(longest, 3),
        "a_batch_of_the_slow_rank": round(slow_batch, 3),
    }
