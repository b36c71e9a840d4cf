"""Commands of the bundled testbed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from interp.models import load
from interp.testbed.card import write_card
from interp.testbed.export import contact_sheet, export
from interp.testbed.score import examine
from interp.testbed.train import RECIPES, Run, train
from interp.testbed.world import EVALUATION_SCENES, Kind, Split


def at_least_one(**values: int | None) -> None:
    """Check numbers by name; None is no limit."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is a number of at least 1, got {value}")


@dataclass(frozen=True)
class Train:
    """Train a testbed model, or go on with a training that was interrupted."""

    out: str = "runs/testbed"
    """Folder of pictures' features, checkpoints and the trained model."""
    recipe: Literal["testbed", "testbed-sink"] = "testbed"
    """Which of the two bundled models to train."""
    steps: int | None = None
    """Steps of the language model; the recipe's if None."""
    tower_steps: int = 5200
    """Steps of the vision tower."""
    scenes: int = 64_000
    """Training scenes of the language model; the tower gets three quarters of that, without habits."""
    seed: int = 0
    """Seed of weights and data."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    compile: bool = True
    """Whether to compile the models first."""

    def __call__(self) -> None:
        """Train."""
        at_least_one(steps=self.steps, tower_steps=self.tower_steps, scenes=self.scenes)
        recipe = RECIPES[self.recipe] if self.steps is None else replace(RECIPES[self.recipe], steps=self.steps)
        run = Run(
            scenes=self.scenes,
            tower_scenes=self.scenes * 3 // 4,
            tower_steps=self.tower_steps,
            seed=self.seed,
            device=self.device,
            compile=self.compile,
        )
        folder = train(Path(self.out), self.recipe, recipe, run)
        print(f"trained model: {folder}")


@dataclass(frozen=True)
class Evaluate:
    """Measure every figure of the model card of a testbed model."""

    model: str = "testbed"
    """A bundled model or a folder."""
    split: Split = "test"
    """dev for every choice, test for the card."""
    limit: int = EVALUATION_SCENES
    """Scenes of each kind."""
    out: str | None = None
    """File for the figures as JSON; printed if None."""
    card: bool = False
    """Write figures and card (README.md) into the model's folder; takes dev and test in turn."""
    device: str = "cpu"
    """cpu, cuda, ..."""

    def __call__(self) -> None:
        """Measure."""
        at_least_one(limit=self.limit)
        model = load(self.model, device=self.device)
        if self.card:
            folder = Path(model.hf.config.name_or_path)
            for split in ("dev", "test"):
                figures = examine(model.hf, model.processor, split, self.limit)
                (folder / f"{split}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            print(write_card(folder).read_text(encoding="utf-8"))
            return
        text = json.dumps(examine(model.hf, model.processor, self.split, self.limit), indent=2)
        if self.out is None:
            print(text)
        else:
            Path(self.out).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Export:
    """Write testbed scenes as a COCO-format folder with POPE questions."""

    out: str
    """Folder to write."""
    kind: Kind = "broken"
    """Kind of scenes."""
    split: Split = "test"
    """Which split."""
    limit: int = EVALUATION_SCENES
    """How many scenes."""

    def __call__(self) -> None:
        """Export."""
        at_least_one(limit=self.limit)
        export(Path(self.out), self.kind, self.split, self.limit)
        print(f"{self.limit} scenes in COCO format: {self.out}")


@dataclass(frozen=True)
class Show:
    """Draw a contact sheet of the testbed's scenes."""

    out: str = "testbed.png"
    """Picture file to write."""
    columns: int = 8
    """Scenes of each kind."""

    def __call__(self) -> None:
        """Draw."""
        at_least_one(columns=self.columns)
        contact_sheet(self.columns).save(self.out)
        print(f"contact sheet: {self.out}")
