"""Commands that look into one model."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from interp import plots
from interp.cli.picture import Shown, show
from interp.cli.testbed import at_least_one
from interp.models import LVLM, Head, diagnose, load
from interp.trace.sinks import SinksConfig, measure_sinks
from interp.views.heads import HeadsConfig, look
from interp.views.overlay import overlay


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
        if self.run is not None and self.model != "testbed":
            raise ValueError("--run brings its own model; leave out --model")
        return show(self.load, self.image, self.prompt, self.run, self.image_id, self.method)


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
