"""The row about how long interp takes to begin."""

import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from interp.bench.clock import Spread
from interp.bench.rows import Bench, Line

HELP = ("-m", "interp", "--help")
ALONE = ("-c", "import torch, transformers")
WITH = ("-c", "import torch, transformers, interp")
MODELS = "transformers.PreTrainedModel, transformers.AutoProcessor, transformers.AutoModelForImageTextToText"
"""What transformers brings when a model is loaded: it puts that off as well."""
CLASSES = ("-c", f"import torch, transformers; {MODELS}")
USED = ("-c", f"import torch, transformers; {MODELS}; import interp; interp.load, interp.VHR, interp.token_vhd")


def _seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of a Python process."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starting(bench: Bench) -> list[Line]:
    """`interp --help`, and what importing interp's main names adds to importing its libraries."""
    runs = {"help": HELP, "alone": ALONE, "with": WITH, "classes": CLASSES, "used": USED}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(bench.repeats + 1):
        for name, arguments in runs.items():
            seconds = _seconds(arguments)
            if turn:  # the first one reads files from the disk
                found[name].append(seconds)
    wall, cpu = (Spread.of([x[i] for x in found["help"]]) for i in (0, 1))

    def beyond(name: str, base: str, i: int) -> Spread:
        return Spread.of([b[i] - a[i] for a, b in zip(found[base], found[name], strict=True)])

    def line(case: str, name: str, base: str) -> Line:
        return Line(case, beyond(name, base, 1), beyond(name, base, 0), 0.3, unit="s")

    return [
        Line("interp --help", cpu, wall, 0.5, unit="s"),
        line("import interp, beyond torch and transformers", "with", "alone"),
        line("load, VHR and token_vhd looked up, beyond transformers' model classes", "used", "classes"),
    ]
