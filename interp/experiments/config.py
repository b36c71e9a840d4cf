"""What every experiment is told: which model and how it is loaded, which images, how it runs.

An experiment's own configuration is made of these three and adds its settings.  Checked on construction; nothing heavy
is imported.
"""

from dataclasses import dataclass
from typing import Literal

DTYPES = ("float32", "bfloat16", "float16", "auto")
QUANTIZATIONS = ("8bit", "4bit")


def at_least(least: int, **values: int | None) -> None:
    """Check numbers by name; None is no limit."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is a number of at least {least}, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ...; under accelerate launch, cuda is one device a process."""
    device_map: str | None = None
    """auto spreads a model too large for one device; in place of device."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16, or auto for the checkpoint's own."""
    attn_implementation: str | None = None
    """sdpa, eager, flash_attention_2, ...; the model's own default if None."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Weights in 8 or 4 bits (bitsandbytes)."""
    trust_remote_code: bool = False
    """Whether to run code that comes with a hub model."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is float32, bfloat16, float16 or auto, got {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ValueError(f"quantization is 8bit or 4bit, got {self.quantization!r}")
        if self.device_map is not None and self.device != "cpu":
            raise ValueError(f"device_map places the model; leave out device, got {self.device_map} and {self.device}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what the model is asked about them."""

    data: str = "testbed:broken"
    """testbed:broken, testbed:biased, testbed:unbiased, or coco:FOLDER with annotations/ and images."""
    split: str | None = None
    """Which split; the testbed's default is test, a COCO folder's its only one."""
    limit: int | None = 200
    """How many images, drawn by seed from the sorted ids; None for all."""
    ids: str | None = None
    """File of image ids in place of limit: one a line, a JSON list, or the manifest.json of another run."""
    seed: int = 0
    """Seed of the sample of images and of the bootstrap; random heads have their own, random-heads:seed=1."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit)
        at_least(0, seed=self.seed)
        if self.seed >= 2**63:
            raise ValueError(f"seed is a number below 2^63, got {self.seed}")


@dataclass(frozen=True)
class RunConfig:
    """How an experiment runs, and where its results go."""

    batch_size: int = 20
    """Images (or questions) at once; halved where memory is short."""
    workers: int = 0
    """Processes that read images ahead."""
    out: str | None = None
    """Folder of the results; a name made of the settings under runs/ if None."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(0, workers=self.workers)


FIFTY, HUNDRED, TENS = DataConfig(limit=50), DataConfig(limit=100), RunConfig(batch_size=10)
"""Other defaults, for experiments that take longer or more memory."""


@dataclass(frozen=True)
class ExperimentConfig:
    """The parts of every experiment's configuration."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    run: RunConfig = RunConfig()
