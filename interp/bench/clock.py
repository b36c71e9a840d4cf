"""Timing several things against each other on a machine that others use: alternately, by the wall and by the processor.

Runs take turns, one of each, so that what else the machine does falls on all alike.  Processor time counts this process
alone, on all its threads: with one thread it is what the run would take on an idle machine, less what caches lose to
others.  On a GPU only the wall counts.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from interp.experiments.manifest import device_name

LIBRARIES = ("torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Spread:
    """The median of some repetitions, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one thing, by the wall and of this process's processor time."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def against(self, other: "Timing", wall: bool = False) -> Spread:
        """How many times as long as `other`, repetition by repetition: each with the one that ran beside it."""
        mine, theirs = (self.wall, other.wall) if wall else (self.cpu, other.cpu)
        return Spread.of([a / b for a, b in zip(mine, theirs, strict=True)])


def alternating(
    runs: Mapping[str, Callable[[], Any]], repeats: int, synchronize: Callable[[], None], warm: int = 1
) -> dict[str, Timing]:
    """Time each run `repeats` times, in turns, after `warm` turns that do not count."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    for turn in range(warm + repeats):
        for name, run in runs.items():
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            synchronize()
            if turn >= warm:
                seconds[name][0].append(time.perf_counter() - wall)
                seconds[name][1].append(time.process_time() - cpu)
    return {name: Timing(tuple(wall), tuple(cpu)) for name, (wall, cpu) in seconds.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the measurements ran on, and how busy it was with others when they began."""
    return {
        "device": device_name(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
