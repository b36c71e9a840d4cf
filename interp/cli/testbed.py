"""Commands of the bundled testbed."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import AutoProcessor

from interp import plots
from interp.folder import locked, write_text
from interp.models import known_device, load
from interp.models.smollm2 import converted_smollm2
from interp.testbed import WEIGHTS
from interp.testbed.card import write_card
from interp.testbed.decoders import DECODERS, chosen_recipes, data_of, groups_of, train_decoder
from interp.testbed.dose import examine_dose
from interp.testbed.emergence import Emergence, emerge, table
from interp.testbed.export import contact_sheet, export
from interp.testbed.prior import PRIOR, at_dose, kept_doses, train_prior
from interp.testbed.score import examine
from interp.testbed.smollm2 import SMOLLM2, train_smollm2
from interp.testbed.steps import Run
from interp.testbed.train import RECIPES, train
from interp.testbed.world import EVALUATION_SCENES, Kind, Split


def at_least_one(**values: int | None) -> None:
    """Check numbers by name; None is no limit."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is a number of at least 1, got {value}")


SCENES = {"testbed": 64_000, "testbed-sink": 64_000, "testbed-prior": 1900, "testbed-smollm2": 4800}
"""The models that can be made, and how many training scenes each is made from."""


@dataclass(frozen=True)
class Train:
    """Train a testbed model, or go on with a training that was interrupted."""

    out: str = "runs/testbed"
    """Folder of pictures' features, checkpoints and the trained model."""
    recipe: Literal["testbed", "testbed-sink", "testbed-prior", "testbed-smollm2"] = "testbed"
    """Which model to train; the last two get the tower of `testbed`."""
    steps: int | None = None
    """Steps on pictures; the recipe's if None."""
    tower_steps: int | None = None
    """Steps of the vision tower (5200 if None), for the recipes that train one."""
    dose: int | None = None
    """testbed-prior: the steps of visual tuning after which the model is taken; the recipe's if None."""
    scenes: int | None = None
    """Training scenes of the language model; the recipe's number if None.  The tower gets three quarters of it."""
    seed: int = 0
    """Seed of weights and data."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    compile: bool = True
    """Whether to compile the models first."""
    keep_checkpoints: bool = False
    """Whether to keep the weights after 0, 1, 2, 3, 4, 6, 8, 12, 16, ... steps."""

    def __call__(self) -> None:
        """Train."""
        at_least_one(steps=self.steps, tower_steps=self.tower_steps, scenes=self.scenes, dose=self.dose)
        if self.tower_steps is not None and self.recipe not in RECIPES:
            raise ValueError(f"{self.recipe} gets the tower of the bundled testbed; tower_steps cannot act")
        if self.dose is not None and self.recipe != "testbed-prior":
            raise ValueError(f"a dose is taken of testbed-prior only, not of {self.recipe}")
        known_device(self.device)
        scenes = self.scenes or SCENES[self.recipe]
        run = Run(
            scenes=scenes,
            tower_scenes=scenes * 3 // 4,
            tower_steps=self.tower_steps or 5200,
            seed=self.seed,
            device=self.device,
            compile=self.compile,
            keep_checkpoints=self.keep_checkpoints,
        )
        with locked(Path(self.out)):
            folder = self._train(Path(self.out), run)
        print(f"trained model: {folder}")

    def _train(self, out: Path, run: Run) -> Path:
        if self.recipe == "testbed-smollm2":
            recipe = SMOLLM2 if self.steps is None else replace(SMOLLM2, steps=self.steps)
            return train_smollm2(out, self.recipe, recipe, run, converted_smollm2())
        if self.recipe == "testbed-prior":
            tuning = PRIOR.tuning if self.steps is None else replace(PRIOR.tuning, steps=self.steps)
            dose = self.dose or (PRIOR.dose if self.steps is None else self.steps)
            return train_prior(out, self.recipe, replace(PRIOR, tuning=tuning, dose=dose), run)
        recipe = RECIPES[self.recipe] if self.steps is None else replace(RECIPES[self.recipe], steps=self.steps)
        return train(out, self.recipe, recipe, run)


@dataclass(frozen=True)
class Evaluate:
    """Measure every figure of the model card of a testbed model."""

    model: str = "testbed"
    """A bundled model or a folder."""
    split: Split = "test"
    """dev for every choice, test for the card."""
    limit: int = EVALUATION_SCENES
    """Scenes of each kind."""
    pope_scenes: int | None = None
    """Scenes that questions are asked about; all of them if None."""
    out: str | None = None
    """File for the figures as JSON; printed if None."""
    card: bool = False
    """Write figures and card (README.md) into the model's folder; takes dev and test in turn."""
    device: str = "cpu"
    """cpu, cuda, ..."""

    def __call__(self) -> None:
        """Measure."""
        at_least_one(limit=self.limit, pope_scenes=self.pope_scenes)
        model = load(self.model, device=self.device)
        if self.card:
            folder = WEIGHTS / self.model if (WEIGHTS / self.model).is_dir() else Path(self.model)
            for split in ("dev", "test"):
                figures = examine(model.hf, model.processor, split, self.limit, pope_scenes=self.pope_scenes)
                (folder / f"{split}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            print(write_card(folder).read_text(encoding="utf-8"))
            return
        text = json.dumps(
            examine(model.hf, model.processor, self.split, self.limit, pope_scenes=self.pope_scenes), indent=2
        )
        if self.out is None:
            print(text)
        else:
            Path(self.out).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Doses:
    """Measure testbed-prior at every dose of visual tuning whose weights were kept, and draw the curve."""

    run: str = "runs/testbed"
    """Folder that `interp testbed train --recipe testbed-prior` worked in."""
    out: str = "figures/dose"
    """Folder for `dose.json` and `dose.png`; a dose that is there already is not measured again."""
    split: Split = "dev"
    """dev chooses the dose."""
    limit: int = 100
    """Scenes of each kind."""
    doses: tuple[int, ...] = ()
    """Only these, in steps; all whose weights were kept if none is named."""

    def __call__(self) -> None:
        """Measure and draw."""
        at_least_one(limit=self.limit)
        out = Path(self.out)
        out.mkdir(parents=True, exist_ok=True)
        path, settings = out / "dose.json", {"split": self.split, "scenes": self.limit}
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if any({key: row[key] for key in settings} != settings for row in rows):
            raise ValueError(f"{path} was measured on other scenes than {settings}; choose another folder")
        processor = AutoProcessor.from_pretrained(WEIGHTS / "testbed")
        doses = self.doses or kept_doses(Path(self.run), "testbed-prior")
        for dose in sorted(set(doses) - {row["dose"] for row in rows}, reverse=True):
            model = at_dose(Path(self.run), "testbed-prior", processor, PRIOR, dose)
            rows.append({"dose": dose} | examine_dose(model, processor, self.split, self.limit))
            rows.sort(key=lambda row: row["dose"])
            path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        plots.draw_doses(out)
        print(f"{len(rows)} doses: {path}, {out / 'dose.png'}")


@dataclass(frozen=True)
class Decoders:
    """Train small decoders on English, one factor changed in each, and measure when an attention sink appears."""

    recipes: str = "all"
    """Comma-separated recipes or groups of them (usual-kernels, usual-factors, planted-kernels, planted-factors)."""
    run: str = "runs/decoders"
    """Folder of the trainings; those that are done are not done again."""
    out: str = "figures/sinks-training"
    """Folder for emergence.json and the figures."""
    steps: int | None = None
    """Steps of every training in place of the recipes' own."""
    n: int = 64
    """Held-out sequences at each of the kept steps."""
    seed: int = 0
    """Seed of weights and data."""
    device: str = "cpu"
    """cpu, cuda, ..."""

    def __call__(self) -> None:
        """Train, measure, draw."""
        at_least_one(steps=self.steps, n=self.n)
        known_device(self.device)
        names = chosen_recipes(self.recipes)
        work, out = Path(self.run), Path(self.out)
        found: dict[str, list[Emergence]] = {}
        with locked(work):
            for name in names:
                recipe = DECODERS[name] if self.steps is None else replace(DECODERS[name], steps=self.steps)
                train_decoder(work, name, recipe, Run(seed=self.seed, device=self.device, compile=False))
                found[name] = emerge(work, name, recipe, self.n)
        out.mkdir(parents=True, exist_ok=True)
        record = {name: {"groups": groups_of(name), "rows": [asdict(r) for r in rows]} for name, rows in found.items()}
        settings = {"seed": self.seed, "n": self.n, "steps": self.steps} | data_of(work)
        write_text(out / "emergence.json", json.dumps({"settings": settings, "recipes": record}, indent=1) + "\n")
        plots.draw_emergence(out)
        print(f"{table(found)}\nfigures: {out}")


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
