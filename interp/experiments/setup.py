"""What an experiment starts from: the model, loaded, and the images, selected once and handed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import BitsAndBytesConfig

from interp.data import Data, open_data
from interp.evaluate.objects import ObjectParser
from interp.experiments.config import DataConfig, ExperimentConfig, ModelConfig
from interp.experiments.engine import Shard
from interp.experiments.manifest import Manifest, device_name, digests
from interp.models import LVLM, load


def open_model(config: ModelConfig, shard: Shard | None = None, **more: Any) -> LVLM:
    """Load a model as a configuration says, on the device of this process; `more` goes to `load`."""
    named = ("revision", "device_map", "attn_implementation")
    options = {name: getattr(config, name) for name in named if getattr(config, name) is not None}
    device = (shard or Shard()).device(config.device)
    if config.quantization is not None:
        bits: Any = {"load_in_8bit": config.quantization == "8bit", "load_in_4bit": config.quantization == "4bit"}
        options = {"device_map": {"": device}, "quantization_config": BitsAndBytesConfig(**bits), **options}
    elif config.device_map is None:
        options["device"] = device
    return load(config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code, **options, **more)


@dataclass(frozen=True)
class Setup:
    """A model, the images that every table of an experiment is of, and this process's part of the work."""

    model: LVLM
    data: Data
    shard: Shard
    parser: ObjectParser

    @classmethod
    def of(cls, config: ExperimentConfig, data: Data | None = None) -> "Setup":
        """Open the data of a configuration (or take `data`), select the images, load the model."""
        parser, shard = ObjectParser.coco(), Shard.current(config.model.device)
        opened = selected(config.data, parser, data)
        return cls(open_model(config.model, shard), opened, shard, parser)

    def require_truth(self) -> None:
        """ValueError if it is not known what is in the images."""
        if not self.data.has_truth:
            raise ValueError(
                f"{self.data.name} does not say which objects are in every picture, so captions cannot be scored; give "
                "it truth (see interp.sources), or use interp attention, which needs none"
            )

    def on(self, config: DataConfig) -> "Setup":
        """The same model with other images."""
        return replace(self, data=selected(config, self.parser))

    def manifest(
        self, experiment: str, config: ExperimentConfig, files: Mapping[str, Path] | None = None, **settings: Any
    ) -> Manifest:
        """What decides the results of an experiment: its own `settings` and `files`, and what all have in common."""
        return Manifest.of(
            experiment=experiment,
            model=config.model.model,
            revision=config.model.revision,
            weights=self.model.fingerprint,
            dtype=config.model.dtype,
            quantization=config.model.quantization,
            attention=self.model.backend,
            device=device_name(self.model.device),
            data=config.data.data,
            split=config.data.split,
            image_ids=list(self.data.image_ids),
            seed=config.data.seed,
            batch_size=config.run.batch_size,
            files=digests({**self.data.files, **(files or {})}),
            **settings,
        )

    def folder(self, prefix: str, config: ExperimentConfig, manifest: Manifest) -> Path:
        """Where the results go: as configured, or a name under runs/ made of the settings."""
        slug = f"{prefix}{Path(config.model.model).name}-{config.data.data}".replace(":", "-").replace("/", "-")
        return Path(config.run.out) if config.run.out else Path("runs") / f"{slug}-{manifest.digest}"


def selected(config: DataConfig, parser: ObjectParser, data: Data | None = None) -> Data:
    """The images that a configuration selects, of its data or of `data`."""
    opened = open_data(config.data, config.split, parser) if data is None else data
    return opened.selected(config.limit, config.seed, config.ids)
