"""What a study wrote, taken up again: its model, its pictures, and its captions with the tokens that wrote them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.data import Data, Sample, open_data
from interp.evaluate.objects import ObjectParser
from interp.experiments.config import ModelConfig
from interp.experiments.manifest import read_manifest
from interp.experiments.records import CaptionRecord, MentionRecord, read_records
from interp.experiments.setup import open_model
from interp.models import LVLM


@dataclass(frozen=True)
class Written:
    """A caption as it was written, with the objects it names."""

    image_id: int | str
    text: str
    tokens: Int[Tensor, " token"]
    mentions: tuple[MentionRecord, ...]


@dataclass(frozen=True)
class WrittenRun:
    """The captions of one method in a folder of `interp study`; `manifest` says what they are of."""

    folder: Path
    manifest: dict[str, Any]
    captions: dict[int | str, Written]

    @classmethod
    def read(cls, folder: str | Path, method: str = "greedy") -> "WrittenRun":
        """Read a run, finished or not; ValueError if it holds no captions of the method."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not (folder / "captions.jsonl").is_file():
            raise ValueError(f"{folder} holds no run of interp study: it has no captions.jsonl")
        records = read_records(folder / "captions.jsonl", CaptionRecord)
        methods = list(dict.fromkeys(r.method for r in records))
        if method not in methods:
            raise ValueError(f"{folder} has captions of {', '.join(methods) or 'no method'}, got {method!r}")
        found = {
            r.image_id: Written(r.image_id, r.caption, torch.tensor(r.tokens, dtype=torch.long), r.mentions)
            for r in records
            if r.method == method
        }
        return cls(folder, manifest, found)

    def caption(self, image_id: int | str) -> Written:
        """The caption of an image; ValueError names some that there are."""
        if image_id not in self.captions:
            some = ", ".join(map(str, list(self.captions)[:5]))
            raise ValueError(f"{self.folder} has no caption of image {image_id}; it has {some}, ...")
        return self.captions[image_id]

    @cached_property
    def data(self) -> Data:
        """The data that the run was on."""
        return open_data(self.manifest["data"], self.manifest["split"], ObjectParser.coco())

    def sample(self, image_id: int | str) -> Sample:
        """An image of the run."""
        return self.data.load(image_id)

    @property
    def prompt(self) -> str:
        """What the model was asked."""
        return self.manifest["prompt"]

    def load(self, device: str = "cpu") -> LVLM:
        """The model that wrote the captions; ValueError if its weights are other ones now."""
        named = ("model", "revision", "dtype", "quantization")
        model = open_model(ModelConfig(device=device, **{name: self.manifest[name] for name in named}))
        if model.fingerprint != self.manifest["weights"]:
            raise ValueError(
                f"{self.manifest['model']} has other weights now ({model.fingerprint}) than those that wrote "
                f"{self.folder} ({self.manifest['weights']}); run the study again"
            )
        return model
