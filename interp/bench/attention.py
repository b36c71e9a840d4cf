"""Benchmarks, each measurement in a process of its own: what reading attention costs in memory and time."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from interp.experiments.manifest import Manifest, device_name
from interp.models import LVLM, Inputs
from interp.models.compat import attention_backend
from interp.testbed.build import build_config, build_model, build_processor
from interp.trace.attention import attention_statistics

GIB = 2**30
CASES = [(length, 16) for length in (512, 1024, 2048, 4096)] + [(1024, layers) for layers in (4, 8)]
"""Positions and layers."""
N_HEADS, WIDTH = 16, 1024


@dataclass(frozen=True)
class BenchAttention:
    """Peak extra memory and time of attention statistics, against keeping all maps (output_attentions=True)."""

    device: str = "cpu"
    """cpu, cuda, ..."""
    repeats: int = 3
    """Timed runs, of which the median counts; one from 2,048 positions on."""
    max_gib: float = 12.0
    """Maps that would take more memory than this are not tried."""
    out: str | None = None
    """Folder for attention.json, with the machine named; printed only if None."""

    def __call__(self) -> None:
        """Measure every case and print the table."""
        if self.repeats < 1:
            raise ValueError(f"repeats is a number of at least 1, got {self.repeats}")
        rows: list[dict[str, Any]] = []
        print(f"{'positions':>9} {'layers':>6}  {'what':<24}{'extra memory':>14}{'seconds':>10}")
        for length, layers in CASES:
            maps = 4 * layers * N_HEADS * length**2 / GIB
            for name in METHODS:
                row: dict[str, Any] = {"positions": length, "layers": layers, "what": name}
                if name == "all maps" and maps > self.max_gib:
                    row |= {"extra_mib": None, "seconds": None, "note": f"{maps:.1f} GiB of maps, not tried"}
                else:
                    row |= self._measured(name, length, layers)
                rows.append(row)
                print(_line(row), flush=True)
        if self.out is not None:
            folder = Path(self.out)
            folder.mkdir(parents=True, exist_ok=True)
            settings = Manifest.of(device=device_name(torch.device(self.device)), threads=torch.get_num_threads())
            result = {**settings.settings, "rows": rows}
            (folder / "attention.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    def _measured(self, name: str, length: int, layers: int) -> dict[str, Any]:
        args = [name, str(length), str(layers), self.device, str(self.repeats)]
        done = subprocess.run(
            [sys.executable, "-m", "interp.bench.attention", *args], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"extra_mib": None, "seconds": None, "note": (done.stderr.strip().splitlines() or ["failed"])[-1]}
        return json.loads(done.stdout.splitlines()[-1])


def _line(row: dict[str, Any]) -> str:
    start = f"{row['positions']:>9} {row['layers']:>6}  {row['what']:<24}"
    if row["seconds"] is None:
        return f"{start}{row['note']}"
    return f"{start}{row['extra_mib']:>10.0f} MiB{row['seconds']:>10.2f}"


def _maps(model: LVLM, inputs: Inputs) -> Any:
    with torch.no_grad(), attention_backend(model.decoder_configs, "eager"):
        return model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1, output_attentions=True).attentions


def _plain(model: LVLM, inputs: Inputs) -> Any:
    with torch.no_grad():
        return model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits


METHODS: dict[str, Callable[[LVLM, Inputs], Any]] = {
    "plain forward": _plain,
    "all maps": _maps,
    "statistics": lambda model, inputs: attention_statistics(model, inputs, with_sparsity=False),
    "statistics and sparsity": lambda model, inputs: attention_statistics(model, inputs),
}


def _peak(device: torch.device) -> float:
    """The most memory this process has held so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _case(name: str, length: int, layers: int, device: str, repeats: int) -> dict[str, float]:
    """Memory beyond that of a plain forward, in MiB, and the median time in seconds."""
    torch.manual_seed(0)
    processor = build_processor()
    hf: Any = build_model(build_config(processor, layers=layers, heads=N_HEADS, width=WIDTH))
    hf.to(device)
    hf.config.get_text_config().max_position_embeddings = max(length, 512)
    model = LVLM(hf, processor, "bench")
    inputs = model.inputs([Image.new("RGB", (96, 96), (90, 120, 60))], "Describe.")
    filler = torch.randint(10, 400, (length - inputs.input_ids.shape[1],))
    inputs = inputs.extended([filler])
    _plain(model, inputs)
    before = _peak(model.device)
    seconds, cpu = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        METHODS[name](model, inputs)
        model.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    found = {"extra_mib": (_peak(model.device) - before) / 2**20, "seconds": sorted(seconds)[repeats // 2]}
    return found | {"cpu_seconds": sorted(cpu)[repeats // 2]}


if __name__ == "__main__":
    what, *numbers, place, times = sys.argv[1:]
    print(json.dumps(_case(what, int(numbers[0]), int(numbers[1]), place, int(times))))
