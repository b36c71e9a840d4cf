"""The command line; options are the fields of the configurations."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import tyro
from transformers.utils import logging

from interp import plots
from interp.attention import SinksConfig, SurveyConfig, measure_sinks, overlay, run_survey
from interp.bench import BenchAttention
from interp.data import read_image
from interp.heads import HeadsConfig, look
from interp.interventions import describe_methods
from interp.models import LVLM, Head, diagnose, load
from interp.study import StudyConfig, run_study
from interp.testbed.card import write_card
from interp.testbed.export import contact_sheet, export
from interp.testbed.score import examine
from interp.testbed.train import RECIPES, Run, train
from interp.testbed.world import EVALUATION_SCENES, Kind, Split


def _at_least_one(**values: int | None) -> None:
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
        _at_least_one(steps=self.steps, tower_steps=self.tower_steps, scenes=self.scenes)
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
        _at_least_one(limit=self.limit)
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
        _at_least_one(limit=self.limit)
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
        _at_least_one(columns=self.columns)
        contact_sheet(self.columns).save(self.out)
        print(f"contact sheet: {self.out}")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, for the commands that take one."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""
    device: str | None = None
    """cpu, cuda, ...; where transformers puts the model if None."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16 or auto."""
    device_map: str | None = None
    """auto spreads a model too large for one device."""
    attn_implementation: str | None = None
    """sdpa, eager, flash_attention_2, ...; the model's own default if None."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Whether to run code that comes with a hub model."""

    def load(self, **more: Any) -> LVLM:
        """Load it."""
        named = ("device_map", "attn_implementation", "revision")
        options = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        remote_code = {"trust_remote_code": self.trust_remote_code}
        return load(self.model, dtype=self.dtype, device=self.device, **remote_code, **options, **more)


@dataclass(frozen=True)
class Doctor(Loading):
    """Check whether interp reads and edits a model rightly; exit code 1 if not."""

    model: tyro.conf.Positional[str] = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""

    def __call__(self) -> None:
        """Print every check."""
        diagnosis = diagnose(self.load(check=False))
        print(diagnosis)
        if not diagnosis.healthy:
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Heads(Loading):
    """Rank the heads of a model by how far one picture moves them (VHD); with --caption, T-VHD of each token."""

    image: str
    """Picture file."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    caption: tuple[str, ...] | None = None
    """Follow a caption token by token: this text, or the model's own if the option stands alone."""
    twin: Literal["remove", "mask", "blank", "noise"] = "remove"
    """How the picture is taken away."""
    top: int = 20
    """Heads in the printed table."""
    top_k: int | None = None
    """Heads of a layer that T-VHD sums over; None for an eighth of them."""
    max_new_tokens: int = 128
    """Length cap of the model's own caption, in tokens."""
    out: str | None = None
    """Folder for heads.csv, tokens.csv, vhd.npz, the figures and the settings."""

    def __call__(self) -> None:
        """Look."""
        _at_least_one(top=self.top, top_k=self.top_k, max_new_tokens=self.max_new_tokens)
        picture = read_image(Path(self.image))
        config = HeadsConfig(self.model, self.image, self.prompt, self.twin, self.top, self.top_k)
        caption = None if self.caption is None else " ".join(self.caption)
        report = look(self.load(), picture, config, caption, self.max_new_tokens)
        print(report)
        if self.out is not None:
            report.write(Path(self.out))
            print(f"written: {self.out}")


@dataclass(frozen=True)
class Methods:
    """List every method with its parameters, citation, cost, and the setting that changes nothing."""

    def __call__(self) -> None:
        """Print the list."""
        print(describe_methods())


@dataclass(frozen=True)
class Study(StudyConfig):
    """Caption images with several methods, look at the heads with and without the image, and compare."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Run the study and print its table."""
        print(run_study(StudyConfig(**vars(self))))


@dataclass(frozen=True)
class Attention(SurveyConfig):
    """Sparsity curves, sinks and attention to the image, measured while captions are written."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Run the survey and print its tables."""
        print(run_survey(SurveyConfig(**vars(self))))


@dataclass(frozen=True, kw_only=True)
class Overlay(Loading):
    """Draw where heads look on a picture at the step that writes a word of the caption."""

    image: str
    """Picture file."""
    token: str
    """A word of the caption."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    heads: str | None = None
    """Comma-separated heads to average, L3H2,L5H0; all if None."""
    caption: str | None = None
    """The caption; the model's own if None."""
    without_sinks: bool = False
    """Leave out tokens that are attention sinks of a head, and renormalise."""
    max_new_tokens: int = 128
    """Length cap of the model's own caption, in tokens."""
    out: str = "overlay.png"
    """Picture file to write; the arrays go beside it as .npz."""

    def __call__(self) -> None:
        """Draw."""
        _at_least_one(max_new_tokens=self.max_new_tokens)
        heads = None if self.heads is None else [Head.parse(label) for label in self.heads.split(",")]
        picture, model = read_image(Path(self.image)), self.load()
        inputs = model.inputs([picture], self.prompt)
        caption = model.encode(self.caption) if self.caption else model.generate(inputs, self.max_new_tokens).tokens[0]
        seen = overlay(model, inputs, caption, self.token, heads, without_sinks=self.without_sinks)
        named = "all heads" if heads is None else ", ".join(str(h) for h in seen.heads)
        title = f"{self.token!r}, {named}\n{100 * seen.image_mass:.0f} % of the attention is on the picture"
        plots.save(plots.overlay(picture, seen.heat[0], title), Path(self.out), heat=seen.heat[0])
        print(f"{title}\nwritten: {self.out}")


@dataclass(frozen=True)
class Sinks(SinksConfig, Loading):
    """How often the first token of a text is an attention sink, by kind of input, and what it looks like inside."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id; vision-language models run without a picture."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Measure and print the table."""
        config = SinksConfig(**{field.name: getattr(self, field.name) for field in fields(SinksConfig)})
        report = measure_sinks(self.load(), config)
        print(report)
        if self.out is not None:
            report.write(Path(self.out))
            print(f"written: {self.out}")


def _app() -> Any:
    testbed: Any = tyro.extras.SubcommandApp()
    for name, command in (("train", Train), ("evaluate", Evaluate), ("export", Export), ("show", Show)):
        testbed.command(command, name=name)
    app: Any = tyro.extras.SubcommandApp()
    app.command(Study, name="study")
    app.command(Methods, name="methods")
    app.command(Heads, name="heads")
    app.command(Attention, name="attention")
    app.command(Sinks, name="sinks")
    app.command(Overlay, name="overlay")
    app.command(Doctor, name="doctor")
    bench: Any = tyro.extras.SubcommandApp()
    bench.command(BenchAttention, name="attention")
    app.command(bench, name="bench", help="Benchmarks, each measurement in a process of its own.")
    app.command(testbed, name="testbed", help="Train, examine, export or show the bundled testbed.")
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `interp` command: a user's mistake is one line and exit code 2."""
    matplotlib.use("Agg")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        command = _app().cli(
            prog="interp", description="Looking inside vision-language models that hallucinate.", args=args
        )
        command()
    except (ValueError, OSError) as error:
        print(f"interp: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interp: interrupted; study and testbed train go on where they stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
