"""Commands that look into one model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from interp import plots
from interp.cli.options import TESTBED, Unchecked, UncheckedModel, checked, flat
from interp.cli.picture import Shown, show
from interp.cli.testbed import at_least_one
from interp.experiments.config import ModelConfig
from interp.experiments.setup import open_model
from interp.experiments.sink_checkpoints import run_checkpoints
from interp.experiments.sinks import SinksConfig
from interp.experiments.sinks_report import run_sinks
from interp.experiments.unsink import UnsinkConfig, run_unsink
from interp.models import LVLM, Head, diagnose
from interp.views.heads import HeadsConfig, look
from interp.views.overlay import overlay


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The model that a command looks into."""

    model: UncheckedModel = TESTBED

    def load(self, **more: Any) -> LVLM:
        """Load it."""
        return open_model(ModelConfig(**vars(self.model)), **more)


@dataclass(frozen=True)
class _Named(UncheckedModel):
    """Which model, and how it is loaded."""

    model: tyro.conf.Positional[str] = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""


@flat
@dataclass(frozen=True)
class Doctor:
    """Check whether interp reads and edits a model rightly; exit code 1 if not."""

    model: _Named = _Named()

    def __call__(self) -> int:
        """Print every check."""
        diagnosis = diagnose(open_model(ModelConfig(**vars(self.model)), check=False))
        print(diagnosis)
        return 0 if diagnosis.healthy else 1


@dataclass(frozen=True, kw_only=True)
class OnePicture(Loading):
    """A picture to look at: a file, or one of a study with its model and the tokens of its caption."""

    image: str | None = None
    """Picture file."""
    run: str | None = None
    """Folder of a study, in place of --image: its model, its prompt, and its caption with the tokens that wrote it."""
    image_id: str | None = None
    """Which picture of --run."""
    method: str = "greedy"
    """Whose caption of --run."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""

    def shown(self) -> Shown:
        """Open it."""
        if self.run is not None and self.model != TESTBED:
            raise ValueError("--run brings its own model; leave out --model")
        return show(self.load, self.image, self.prompt, self.run, self.image_id, self.method)


@flat
@dataclass(frozen=True, kw_only=True)
class Heads(OnePicture):
    """Rank the heads of a model by how far one picture moves them (VHD); with --caption, T-VHD of each token."""

    caption: tuple[str, ...] | None = None
    """Follow a caption token by token: this text, or the model's own if the option stands alone."""
    image_free: Literal["remove", "mask", "blank", "noise"] = "remove"
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
        at_least_one(top=self.top, top_k=self.top_k, max_new_tokens=self.max_new_tokens)
        shown = self.shown()
        text = None if self.caption is None else " ".join(self.caption)
        caption = None if text is None and shown.written is None else shown.follow(text, self.max_new_tokens)
        config = HeadsConfig(shown.model.name, shown.name, shown.prompt, self.image_free, self.top, self.top_k)
        report = look(shown.model, shown.inputs, config, caption)
        print(report)
        if self.out is not None:
            report.write(Path(self.out))
            print(f"written: {self.out}")


@flat
@dataclass(frozen=True, kw_only=True)
class Overlay(OnePicture):
    """Draw where heads look on a picture at the step that writes a word of the caption."""

    token: str
    """A word of the caption, whole."""
    nth: int | None = None
    """Which of several such words, from 1."""
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
        at_least_one(max_new_tokens=self.max_new_tokens, nth=self.nth)
        heads = None if self.heads is None else Head.parse_list(self.heads)
        shown = self.shown()
        caption, options = shown.follow(self.caption, self.max_new_tokens), {"without_sinks": self.without_sinks}
        seen = overlay(shown.model, shown.inputs, caption, self.token, heads, nth=self.nth, **options)
        named = "all heads" if heads is None else ", ".join(str(h) for h in seen.heads)
        title = f"{self.token!r}, {named}\n{100 * seen.image_mass:.0f} % of the attention is on the picture"
        plots.save(plots.overlay(shown.picture, seen.heat[0], title), Path(self.out), heat=seen.heat[0])
        print(f"{title}\nwritten: {self.out}")


@flat
@dataclass(frozen=True)
class Sinks(Unchecked, SinksConfig):
    """How often the first token of a text is an attention sink, by kind of input and length, and how it looks inside.

    With --checkpoints the same over a training.
    """

    model: UncheckedModel = TESTBED

    def __call__(self) -> None:
        """Measure and print the table."""
        config = checked(self, SinksConfig)
        print(run_sinks(config) if config.checkpoints is None else run_checkpoints(config))
        if config.out is not None:
            print(f"written: {config.out}")


@flat
@dataclass(frozen=True)
class Unsink(Unchecked, UnsinkConfig):
    """What a model loses where its sink is masked, drained or penalised, and which heads rest on it."""

    model: UncheckedModel = TESTBED

    def __call__(self) -> None:
        """Measure and print the table."""
        config = checked(self, UnsinkConfig)
        print(run_unsink(config))
        if config.out is not None:
            print(f"written: {config.out}")
