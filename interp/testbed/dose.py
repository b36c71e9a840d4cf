"""Whether the eye knows and the text overrules it: the figures of a model with a prior, at one dose of visual tuning.

`know` is a linear probe at the image tokens.  `follow` looks at every hallucinated partner: the caption is cut just
before it, and P(its name comes next) is read with the anchor taken out of the picture (drawn anew) or out of the text
(its earlier mentions renamed to another thing of the picture).  A word follows what it needs: the picture, the text,
either of them (both), or neither.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.evaluate.bootstrap import Interval, intervals
from interp.evaluate.chair import rates, score_caption, table
from interp.evaluate.objects import ObjectParser
from interp.metrics.ranking import auroc
from interp.metrics.signal_detection import sensitivity
from interp.testbed.language import CAPTION_PROMPTS, article
from interp.testbed.score import describe, habit, judge, picture
from interp.testbed.world import ANCHOR_OF, CATEGORIES, PARTNER_OF, Kind, Scene, Split, scene


@dataclass(frozen=True)
class Followed:
    """Percent of hallucinated partners of a present anchor by what they follow, with 95 % intervals over scenes.

    None where there were none; `n` could be judged.
    """

    shares: dict[str, Interval] | None
    n: int


def _prompt(processor: Any) -> str:
    content = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPTS[0]}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@torch.no_grad()
def _surprise(
    model: Any, processor: Any, scenes: Sequence[Scene], told: Sequence[str], name: str
) -> Float[np.ndarray, " cut"]:
    """-log P(`name` next) after each text with its picture."""
    opening = _prompt(processor)
    space = "" if opening.endswith("\n") else " "
    images = [picture(s) for s in scenes]
    end = len(processor.tokenizer.encode(" " + name, add_special_tokens=False))
    texts = [f"{opening}{space}{text} {name}" for text in told]
    inputs = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    logits = model(**inputs.to(model.device)).logits[:, -end - 1 : -1].float()
    words = inputs["input_ids"][:, -end:, None]
    return -logits.log_softmax(-1).gather(-1, words)[..., 0].sum(-1).cpu().numpy()


def _renamed(text: str, old: str, new: str) -> str:
    """The text with one object's name in place of another's, articles included."""
    text = re.sub(rf"\b([Aa])n? {old}\b", lambda m: f"{m[1]}{article(new)[1:]} {new}", text)
    return re.sub(rf"\b{old}\b", new, text)


def follow(model: Any, processor: Any, texts: Sequence[str], scenes: Sequence[Scene]) -> Followed:
    """What hallucinated partners follow: a swap matters if it takes more than half of the word's probability."""
    causes = {(True, False): "picture", (False, True): "text", (True, True): "both", (False, False): "neither"}
    needs = np.zeros((len(scenes), len(causes)))
    for row, text, s in zip(needs, texts, scenes, strict=True):
        for partner, anchor in ANCHOR_OF.items():
            found = re.search(rf"\b{partner}\b", text)
            if found is None or partner in s.categories or anchor not in s.categories:
                continue
            before = text[: found.start()].rstrip()
            other = next((t.category for t in s.things if t.category != anchor and t.category not in PARTNER_OF), None)
            if other is None:
                continue
            without = replace(s, things=tuple(t for t in s.things if t.category != anchor))
            told = [before, before, _renamed(before, anchor, other)]
            kept, no_picture, no_text = _surprise(model, processor, [s, without, s], told, partner)
            row[list(causes).index((bool(no_picture - kept > np.log(2)), bool(no_text - kept > np.log(2))))] += 1

    def shares(totals: np.ndarray, _: int) -> dict[str, np.ndarray]:
        judged = totals.sum(-1)  # resamples without such a word know no share
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: np.asarray(100 * totals[..., i] / judged) for i, name in enumerate(causes.values())}

    n = int(needs.sum())
    return Followed(intervals(needs, shares) if n else None, n)


@torch.no_grad()
def _residual(model: Any, processor: Any, scenes: Sequence[Scene]) -> Float[np.ndarray, "layer scene width"]:
    """Mean residual stream over the image tokens, after each layer."""
    rows = []
    for start in range(0, len(scenes), 50):
        images = [picture(s) for s in scenes[start : start + 50]]
        inputs = processor(images=images, text=[_prompt(processor)] * len(images), return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        seen = inputs["input_ids"][0] == model.config.image_token_id
        states = model(**inputs, output_hidden_states=True).hidden_states
        rows.append(torch.stack([x[:, seen].float().mean(1) for x in states]).cpu().numpy())
    return np.concatenate(rows, axis=1)


def know(model: Any, processor: Any, split: Split, n: int, seed: int = 0, fitted_on: int = 600) -> list[float]:
    """AUROC of a linear probe for present against absent partners of a present anchor, embedding and each layer.

    Ridge regression on the mean residual stream at the image tokens, fitted on training scenes without habit, so
    that it cannot lean on the anchor; read on `n` biased and `n` broken scenes of the split, all partners together.
    """
    fit = [scene("unbiased", "train", i, seed) for i in range(fitted_on)]
    test = [scene(kind, split, i, seed) for kind in ("biased", "broken") for i in range(n)]
    partners = list(ANCHOR_OF)
    truth = np.array([[p in s.categories for p in partners] for s in fit], dtype=float)
    here = np.array([[p in s.categories for p in partners] for s in test])
    asked = np.array([[ANCHOR_OF[p] in s.categories for p in partners] for s in test])
    areas = []
    for x, z in zip(_residual(model, processor, fit), _residual(model, processor, test), strict=True):
        centre, spread = x.mean(0), x.std(0) + 1e-6
        x, z = (x - centre) / spread, (z - centre) / spread
        weights = np.linalg.solve(x.T @ x + 10.0 * np.eye(x.shape[1]), x.T @ (truth - truth.mean(0)))
        area = auroc((z @ weights)[asked], here[asked])
        assert area is not None
        areas.append(area)
    return areas


def measure(texts: Sequence[str], scenes: Sequence[Scene], parser: ObjectParser) -> dict[str, Interval]:
    """CHAIR, recall, d' and criterion over the world's categories, and `guessed`, with 95 % intervals over scenes.

    `guessed` is the percent of absent partners of present anchors that are named.
    """
    scores = [score_caption(text, s.categories, parser) for text, s in zip(texts, scenes, strict=True)]
    rows = []
    for score, s in zip(scores, scenes, strict=True):
        absent = set(CATEGORIES) - s.categories
        said = {m.category for m in score.mentions}
        expected = {PARTNER_OF[a] for a in PARTNER_OF if a in s.categories} & absent
        rows.append((len(said & absent), len(absent), len(said & expected), len(expected)))

    def rate(totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        guessed = 100 * totals[..., 8] / np.maximum(totals[..., 9], 1)
        return rates(totals[..., :6], n) | sensitivity(totals[..., [3, 4, 6, 7]]) | {"guessed": np.asarray(guessed)}

    return intervals(np.hstack([table(scores), np.array(rows, dtype=float)]), rate)


def examine_dose(model: Any, processor: Any, split: Split, n: int, seed: int = 0) -> dict[str, Any]:
    """Captions of `n` biased, broken and faint scenes, the probe, and what hallucinations follow; plain numbers."""
    parser = ObjectParser.coco()
    figures: dict[str, Any] = {"split": split, "scenes": n, "probe_auroc": know(model, processor, split, n, seed)}
    kinds: tuple[Kind, ...] = ("biased", "broken", "faint")
    for kind in kinds:
        scenes = [scene(kind, split, i, seed) for i in range(n)]
        texts = describe(model, processor, scenes, title=f"{kind} captions")
        figures[kind] = asdict(judge(texts, scenes, parser)) | {"habit": asdict(habit(texts, scenes, parser))}
        figures[kind]["examples"] = texts[:3]
        figures[kind]["interval"] = {name: asdict(value) for name, value in measure(texts, scenes, parser).items()}
        if kind == "broken":
            figures["follows"] = asdict(follow(model, processor, texts, scenes))
    return figures
