"""What a study wrote, taken up again: its model, its pictures, and its captions with the tokens that wrote them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.data import Data, Sample, open_data
from interp.evaluate.objects import ObjectParser
from interp.models import LVLM, load


@dataclass(frozen=True)
class Written:
    """A caption as it was written, with the objects it names (`mentions`, as the records have them)."""

    image_id: int | str
    text: str
    tokens: Int[Tensor, " token"]
    mentions: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class WrittenRun:
    """The captions of one method in a folder of `interp study`; `manifest` says what they are of."""

    folder: Path
    manifest: dict[str, Any]
    captions: dict[int | str, Written]

    @classmethod
    def read(cls, folder: str | Path, method: str = "greedy") -> "WrittenRun":
        """Read a run, finished or not; ValueError if it holds no captions of the method, or no tokens of them."""
        folder = Path(folder)
        files = [folder / name for name in ("manifest.json", "captions.jsonl")]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{folder} holds no run of interp study: it has no {' and no '.join(missing)}")
        manifest = json.loads(files[0].read_text(encoding="utf-8"))
        text = files[1].read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        methods = list(dict.fromkeys(row["method"] for row in rows))
        if method not in methods:
            raise ValueError(f"{folder} has captions of {', '.join(methods) or 'no method'}, got {method!r}")
        chosen = [row for row in rows if row["method"] == method]
        if not all("tokens" in row for row in chosen):
            raise ValueError(f"{folder} was written before runs kept the tokens of captions; run the study again")
        found = {
            row["image_id"]: Written(
                row["image_id"], row["caption"], torch.tensor(row["tokens"], dtype=torch.long), tuple(row["mentions"])
            )
            for row in chosen
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
        return self.data.load(image_id)  # pyright: ignore[reportArgumentType]

    @property
    def prompt(self) -> str:
        """What the model was asked."""
        return self.manifest["prompt"]

    def load(self, device: str | None = None, **options: Any) -> LVLM:
        """The model that wrote the captions; ValueError if its weights are other ones now."""
        revision = self.manifest.get("revision")
        more = {"revision": revision} if revision else {}
        model = load(self.manifest["model"], dtype=self.manifest["dtype"], device=device, **more, **options)
        if model.fingerprint != self.manifest["weights"]:
            raise ValueError(
                f"{self.manifest['model']} has other weights now ({model.fingerprint}) than those that wrote "
                f"{self.folder} ({self.manifest['weights']}); run the study again"
            )
        return model
