"""What a study costs on many GPUs, on paper: bytes, operations and launches of LLaVA-1.5-7B's shape, and ratios.

    python -m interp.bench.scale

Nothing here was run on a GPU.  A step of decoding takes the longer of what the memory needs (weights once, keys and
values of all rows) and what the host needs to start its operations; a prompt takes its multiplications.
"""

import json
from dataclasses import dataclass
from pathlib import Path

MEASURED = {
    "greedy": None,
    "vhr": ("smollm2", "vhr", "vhr, batch 8"),
    "random-heads": ("smollm2", "vhr", "vhr, batch 8"),
    "bottom-heads": ("smollm2", "vhr", "vhr, batch 8"),
    "vcd": ("smollm2", "two-streams", "vcd, batch 8"),
    "icd": ("smollm2", "two-streams", "vcd, batch 8"),
    "m3id": ("smollm2", "two-streams", "m3id, batch 8"),
    "pai": ("smollm2", "two-streams", "pai, batch 8"),
    "vasparse": ("smollm2", "vasparse", "batch 8, greedy"),
    "snapkv": ("testbed", "evicting", "snapkv, batch 16, 2000 image tokens"),
    "h2o": ("testbed", "evicting", "h2o, batch 16, 2000 image tokens"),
    "opera": ("testbed", "opera", "batch 8, 48 tokens, greedy"),
}
"""Where a method's cost against greedy was measured: size, row and case.  Controls of VHR cost what VHR costs, and ICD,
which reads a second prompt, what VCD costs."""
FIGURES = Path("figures/bench")


def ratios() -> dict[str, float]:
    """Times greedy, as they were measured."""
    found = {}
    for method, place in MEASURED.items():
        found[method] = 1.0 if place is None else _measured(*place)
    return found


def _measured(size: str, row: str, case: str) -> float:
    rows = json.loads((FIGURES / f"{size}.json").read_text(encoding="utf-8"))["rows"]
    lines = next(r["lines"] for r in rows if r["name"] == row)
    return round(next(line["value"]["median"] for line in lines if line["case"] == case), 2)


@dataclass(frozen=True)
class Shape:
    """LLaVA-1.5-7B in bfloat16 on one GPU, and what is assumed of the GPU and of its host."""

    parameters: float = 6.74e9
    layers: int = 32
    width: int = 4096
    prompt: int = 640
    tokens: int = 128
    batch: int = 16
    bytes_per_second: float = 3.35e12
    flops: float = 4e14
    """What is reached of the peak of 9.9e14."""
    operations_per_layer: int = 26
    seconds_per_operation: float = 2.5e-5
    """The host's Python and its launch, for an operation of transformers' layers (assumed)."""

    @property
    def step(self) -> tuple[float, float]:
        """Seconds of a decoding step: by memory, by the host."""
        rows = self.batch * (self.prompt + self.tokens / 2)
        moved = 2 * self.parameters + rows * self.layers * self.width * 2 * 2
        return moved / self.bytes_per_second, self.layers * self.operations_per_layer * self.seconds_per_operation

    @property
    def image(self) -> float:
        """Seconds of an image, greedy."""
        prompt = 2 * self.parameters * self.prompt / self.flops
        return prompt + self.tokens * max(self.step) / self.batch


def cost(shape: Shape, ratios: dict[str, float], images: int, gpus: int) -> dict[str, float]:
    """GPU hours, wall hours, and what the files and reads amount to."""
    hours = sum(ratios.values()) * shape.image * images / 3600
    wall = hours / gpus
    return {
        "gpus": gpus,
        "gpu_hours": round(hours, 1),
        "wall_hours": round(wall, 2),
        "share_of_opera": round(ratios["opera"] / sum(ratios.values()), 2),
        "pictures_read_per_second": round(images * len(ratios) / wall / 3600, 1),
        "files_claimed_per_second": round(images * len(ratios) / shape.batch / wall / 3600, 2),
    }


def main() -> None:
    """Print the assumptions and the cost on 8 and 64 GPUs, and write them to `figures/bench/scale.json`."""
    shape = Shape()
    (memory, host), times = shape.step, ratios()
    found = {
        "assumed": vars(shape) | {"ratios": times},
        "step_by_memory_ms": round(1e3 * memory, 1),
        "step_by_host_ms": round(1e3 * host, 1),
        "image_seconds": round(shape.image, 3),
        "study": [cost(shape, times, 40_000, gpus) for gpus in (8, 64)],
    }
    print(json.dumps(found, indent=1))
    (FIGURES / "scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
