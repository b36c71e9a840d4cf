"""What a study costs on many GPUs, on paper: bytes, operations and launches of LLaVA-1.5-7B's shape, and ratios.

    python -m interp.bench.scale

Nothing here was run on a GPU.  A step of decoding takes the longer of what the memory needs (weights once, keys and
values of all rows) and what the host needs to start its operations; a prompt takes its multiplications.
"""

import json
from dataclasses import dataclass
from pathlib import Path

RATIOS = {
    "greedy": 1.0,
    "vhr": 1.15,
    "random-heads": 1.15,
    "bottom-heads": 1.15,
    "vcd": 1.5,
    "icd": 2.0,
    "m3id": 1.5,
    "pai": 1.7,
    "vasparse": 2.6,
    "snapkv": 1.0,
    "h2o": 1.3,
    "opera": 2.5 * 16 / 5,
}
"""Times greedy at batch 16, near what the testbed gave; OPERA searches prompt after prompt, so a batch saves nothing:
its ratio to five beams, times what greedy gains from the batch, less what five beams already gain (assumed)."""


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


def cost(shape: Shape, images: int, gpus: int) -> dict[str, float]:
    """GPU hours, wall hours, and what the files and reads amount to."""
    hours = sum(RATIOS.values()) * shape.image * images / 3600
    wall = hours / gpus
    return {
        "gpus": gpus,
        "gpu_hours": round(hours, 1),
        "wall_hours": round(wall, 2),
        "share_of_opera": round(RATIOS["opera"] / sum(RATIOS.values()), 2),
        "pictures_read_per_second": round(images * len(RATIOS) / wall / 3600, 1),
        "files_claimed_per_second": round(images * len(RATIOS) / shape.batch / wall / 3600, 2),
    }


def main() -> None:
    """Print the assumptions and the cost on 8 and 64 GPUs, and write them to `figures/bench/scale.json`."""
    shape = Shape()
    memory, host = shape.step
    found = {
        "assumed": vars(shape) | {"ratios": RATIOS},
        "step_by_memory_ms": round(1e3 * memory, 1),
        "step_by_host_ms": round(1e3 * host, 1),
        "image_seconds": round(shape.image, 3),
        "study": [cost(shape, 40_000, gpus) for gpus in (8, 64)],
    }
    print(json.dumps(found, indent=1))
    Path("figures/bench/scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
