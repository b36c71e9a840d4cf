"""Commands that ask what the inside of a model says: the logit lens, activation patching, a detector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from interp import plots
from interp.attribution.patching import Over, Patching, first_order, logit_difference, patch
from interp.cli.looking import Loading, OnePicture
from interp.cli.options import flat
from interp.cli.testbed import at_least_one
from interp.data import read_image
from interp.evaluate.objects import ObjectParser
from interp.experiments.across import Across
from interp.experiments.detector import detect
from interp.experiments.own_score import score_run
from interp.experiments.steering import from_run
from interp.experiments.written import WrittenRun
from interp.models import image_free
from interp.views.lens import look_through


@flat
@dataclass(frozen=True, kw_only=True)
class Lens(OnePicture):
    """What each layer would say at each token of a caption, or at each place of the picture (logit lens)."""

    caption: str | None = None
    """The caption; the model's own if None."""
    over: Literal["text", "image"] = "text"
    """The steps that write the caption, or the picture's tokens."""
    site: str = "resid_post"
    """resid_pre, resid_post, attn_out or mlp_out."""
    words: str | None = None
    """Only these compete: comma-separated words, or categories for the 80 of COCO; all tokens if None."""
    layer: int | None = None
    """Layer to print, and to draw over the picture; the last if None."""
    top: int = 5
    """Words kept at each place."""
    max_new_tokens: int = 128
    """Length cap of the model's own caption, in tokens."""
    out: str | None = None
    """Folder for lens.csv, lens.npz, lens.png and, over the image, picture.png."""

    def __call__(self) -> None:
        """Look."""
        at_least_one(top=self.top, max_new_tokens=self.max_new_tokens)
        shown = self.shown()
        layer = shown.model.n_layers - 1 if self.layer is None else self.layer
        if not 0 <= layer < shown.model.n_layers:
            raise ValueError(f"this model has layers 0 to {shown.model.n_layers - 1}, got {layer}")
        words = None
        if self.words is not None:
            listed = [w.strip() for w in self.words.split(",") if w.strip()]
            words = list(ObjectParser.coco().categories) if self.words == "categories" else listed
        # the picture's tokens come before the caption and do not see it
        nothing = torch.zeros(0, dtype=torch.long, device=shown.model.device)
        caption = nothing if self.over == "image" else shown.follow(self.caption, self.max_new_tokens)
        view = look_through(shown.model, shown.inputs, caption, self.site, self.over, words, self.top)
        print(view.shown(range(layer, layer + 1)))
        if self.out is not None:
            view.write(Path(self.out), layer)
            print(f"written: {self.out}")


@flat
@dataclass(frozen=True, kw_only=True)
class Patch(Loading):
    """Put heads, layers or positions of a run on one picture into a run on another: how much comes over."""

    image: str
    """Picture file of the run that is patched."""
    source: str | None = None
    """Picture file of the run that values are taken from; the same picture taken away (--image-free) if None."""
    image_free: Literal["remove", "mask", "blank", "noise"] = "blank"
    """How the picture is taken away where there is no --source."""
    prompt: str = "Is there a fork in the image?"
    """What the model is asked."""
    word: str = "Yes"
    """The answer whose logit is measured."""
    against: str = "No"
    """The answer whose logit is taken off."""
    site: str = "z"
    """z or q (they have heads), resid_pre, attn_out, mlp_post, mlp_out, resid_post."""
    over: Over = "head"
    """What is put over at a time: a head or a whole layer at all positions, or one position of a layer."""
    positions: str | None = None
    """Comma-separated positions from the end (-1 the last); all if None."""
    cheap: bool = False
    """To first order from one backward pass (attribution patching), instead of a forward pass for each place."""
    out: str | None = None
    """Folder for patching.npz and the figure."""

    def __call__(self) -> None:
        """Patch, print the strongest places."""
        try:
            positions = None if self.positions is None else [int(p) for p in self.positions.split(",")]
        except ValueError:
            raise ValueError(f"positions are written like -1,-2, got {self.positions!r}") from None
        pictures = [read_image(Path(file)) for file in (self.image, self.source) if file is not None]
        model = self.load()
        target = model.inputs(pictures[:1], self.prompt)
        other = model.inputs(pictures[1:], self.prompt) if self.source else image_free(model, target, self.image_free)
        this, that = (int(model.answer(w, target.texts[0]).ids[0]) for w in (self.word, self.against))
        if this == that:
            raise ValueError(f"{self.word!r} and {self.against!r} begin with the same token; choose other words")
        metric, run = logit_difference(this, that), first_order if self.cheap else patch
        found = run(model, target, other, metric, site=self.site, over=self.over, positions=positions)
        print(self._table(found))
        if self.out is not None:
            out, effect = Path(self.out), found.effect[0].cpu().numpy()
            out.mkdir(parents=True, exist_ok=True)
            title = f"{self.site}: share of the other run's answer that comes over"
            if self.over == "position":
                tokens = [model.tokenizer.decode([i]) for i in target.input_ids[0, list(found.columns)].tolist()]
                ax = plots.patching_heatmap(effect, tokens, "effect", title)
            else:
                ax = plots.head_heatmap(effect, "effect", title, signed=True)
            plots.save(ax, out / "patching.png", effect=effect, columns=np.array(found.columns))
            print(f"written: {out}")

    def _table(self, found: Patching) -> str:
        effect = found.effect[0].cpu().numpy()
        order = np.argsort(-np.abs(effect), axis=None, kind="stable")[:10]
        mark = {"head": "H", "position": " position ", "layer": ""}[self.over]
        lines = [
            f"{self.word} minus {self.against}: {found.target[0]:+.2f} on --image, {found.source[0]:+.2f} on the other",
            f"strongest of {effect.size} places of {self.site} (0: nothing changes, 1: the source's answer)",
        ]
        for layer, column in (divmod(int(i), effect.shape[1]) for i in order):
            place = f"L{layer}{mark}{'' if self.over == 'layer' else found.columns[column]}"
            lines.append(f"  {place:<20}{effect[layer, column]:+.3f}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Detect:
    """Whether T-VHD, head outputs or residual states tell hallucinated words, beyond position and probability."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of finished interp studies of one model: captions, labels and model are taken."""
    method: str = "greedy"
    """Whose captions."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ..."""
    batch_size: int = 20
    """Captions at once."""
    seed: int = 0
    """Seed of the folds and of the bootstrap."""
    out: str | None = None
    """Folder for detector.json, detector.npz and the ROC curves."""

    def __call__(self) -> None:
        """Train, compare, print the table."""
        at_least_one(batch_size=self.batch_size)
        if not self.runs or len(set(self.runs)) < len(self.runs):
            raise ValueError(f"expected folders of interp study, each once, got {' '.join(self.runs) or 'none'}")
        runs = [WrittenRun.read(run, self.method) for run in self.runs]
        found = detect(runs[0].load(self.device), runs, batch_size=self.batch_size, seed=self.seed)
        print(found)
        if self.out is not None:
            names = ("model", "weights", "data", "split", "prompt", "image_ids")
            taken = [{name: run.manifest[name] for name in names} for run in runs]
            found.write(Path(self.out), {"runs": taken, "method": self.method, "seed": self.seed})
            print(f"written: {self.out}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the captions of a study with a function of your own, with intervals and paired differences."""

    run: tyro.conf.Positional[str]
    """Folder of interp study."""
    score: str
    """package.module:function of a caption's text and the objects in its picture, or an entry point interp.scores."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __call__(self) -> None:
        """Print the table."""
        print(score_run(self.run, self.score, self.seed))


@dataclass(frozen=True, kw_only=True)
class MakeDirection:
    """Make a steering vector from a study: correct minus hallucinated words, or with the picture minus without."""

    run: tyro.conf.Positional[str]
    """Folder of interp study, on other images than those that will be steered."""
    layer: int
    """After which layer."""
    of: Literal["words", "pictures"] = "words"
    """words: correct minus hallucinated; pictures: with the picture minus without, at the last prompt token."""
    limit: int | None = None
    """How many captions, the first of the run; all if None."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ..."""
    out: str = "direction.npz"
    """File to write."""

    def __call__(self) -> None:
        """Make it."""
        at_least_one(limit=self.limit)
        run = WrittenRun.read(self.run)
        found = from_run(run.load(self.device), run, self.layer, self.of, self.limit)
        found.write(Path(self.out))
        print(f"{found}\nwritten: {self.out}")


@dataclass(frozen=True)
class OverModels:
    """Set methods by models in one table, from folders of finished studies; no model is loaded."""

    studies: tyro.conf.Positional[tuple[str, ...]]
    """Folders of interp study, each of another model."""
    causes: tuple[str, ...] = ()
    """Folders of interp cause of these models: what their hallucinations follow heads the columns."""
    out: str | None = None
    """Folder for across.json, across.md and the figure."""

    def __call__(self) -> None:
        """Read, print, draw."""
        found = Across.read([Path(folder) for folder in self.studies], [Path(folder) for folder in self.causes])
        print(found)
        if self.out is not None:
            found.write(Path(self.out))
