"""Examining a testbed model with plain Hugging Face code: every figure of the model card."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from interp.evaluate.chair import Chair, chair, score_caption
from interp.evaluate.objects import ObjectParser
from interp.evaluate.pope import Pope, pope
from interp.metrics.attention import sink_rate
from interp.testbed.draw import draw
from interp.testbed.language import CAPTION_PROMPTS, PLACES, Claim, ask_presence, caption, read
from interp.testbed.world import ANCHOR_OF, CATEGORIES, PARTNER_OF, Kind, Scene, Split, scene

POPE_SETTINGS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Question:
    """A POPE question about a scene; `present` is its label."""

    index: int
    category: str
    present: bool

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return ask_presence(self.category, self.present).prompt


@lru_cache(maxsize=2000)  # several questions are asked about one picture
def picture(s: Scene) -> Image.Image:
    """The scene's picture."""
    return Image.fromarray(draw(s))


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    max_new_tokens: int,
    batch: int = 50,
) -> Iterator[str]:
    """Greedy answers to one prompt an image, in order."""
    for start in range(0, len(images), batch):
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p}]}],
                add_generation_prompt=True,
            )
            for p in prompts[start : start + batch]
        ]
        inputs = processor(
            images=list(images[start : start + batch]), text=texts, padding=True, return_tensors="pt"
        ).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        yield from (
            t.strip() for t in processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        )


def describe(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    images: Sequence[Image.Image] | None = None,
    title: str = "captions",
) -> list[str]:
    """A caption of each scene (of other `images`, if given)."""
    images = [picture(s) for s in scenes] if images is None else images
    prompts = [CAPTION_PROMPTS[0]] * len(scenes)
    return list(tqdm(answer(model, processor, images, prompts, 128), total=len(scenes), desc=title, unit="image"))


@cache
def _popular(seed: int) -> tuple[str, ...]:
    """Categories from the most to the least frequent in training."""
    counts = Counter(c for i in range(2000) for c in scene("train", "train", i, seed).categories)
    return tuple(sorted(CATEGORIES, key=lambda c: (-counts[c], c)))


def scene_questions(kind: Kind, split: Split, index: int, setting: str, seed: int = 0) -> list[Question]:
    """Balanced questions about a scene, three about what is there and three about what is not (POPE's construction).

    What is not there is drawn at random, from the categories most frequent in training, or from the
    partners of what is there first (`adversarial`).
    """
    if setting not in POPE_SETTINGS:
        raise ValueError(f"unknown setting {setting!r}; expected one of {', '.join(POPE_SETTINGS)}")
    s = scene(kind, split, index, seed)
    rng = np.random.default_rng([seed, 5, POPE_SETTINGS.index(setting), index])
    present = [str(c) for c in rng.permutation(sorted(s.categories))][:3]
    shuffled = [str(c) for c in rng.permutation(CATEGORIES) if c not in s.categories]
    if setting == "popular":
        shuffled = [c for c in _popular(seed) if c not in s.categories]
    elif setting == "adversarial":
        partners = [PARTNER_OF[c] for c in sorted(s.categories) if c in PARTNER_OF]
        shuffled = list(dict.fromkeys([*(p for p in partners if p not in s.categories), *shuffled]))
    there = [Question(index, c, True) for c in present]
    return there + [Question(index, c, False) for c in shuffled[: len(present)]]


def pope_questions(kind: Kind, split: Split, n: int, setting: str, seed: int = 0) -> list[Question]:
    """The questions about the first `n` scenes."""
    return [q for index in range(n) for q in scene_questions(kind, split, index, setting, seed)]


def ask(
    model: Any, processor: Any, kind: Kind, split: Split, questions: Sequence[Question], title: str, seed: int = 0
) -> Pope:
    """POPE of the model on questions about scenes of a split."""
    images = [picture(scene(kind, split, q.index, seed)) for q in questions]
    said = tqdm(
        answer(model, processor, images, [q.text for q in questions], 4),
        total=len(questions),
        desc=title,
        unit="question",
    )
    return pope(list(said), [q.present for q in questions])


@dataclass(frozen=True)
class Captions:
    """How well captions of scenes fit; rates in percent; colour and place over claims about what is there."""

    chair: Chair
    grammatical: float
    colour: float
    place: float


def judge(texts: Sequence[str], scenes: Sequence[Scene], parser: ObjectParser) -> Captions:
    """Score captions against their scenes."""
    claims: list[tuple[Claim, Scene]] = []
    grammatical = 0
    for text, s in zip(texts, scenes, strict=True):
        said = read(text)
        grammatical += said is not None
        claims += [(claim, s) for claim in said or []]
    right: dict[str, list[bool]] = {"colour": [], "place": []}
    for claim, s in claims:
        thing = next((t for t in s.things if t.category == claim.category), None)
        if thing is not None and claim.colour is not None:
            right["colour"].append(claim.colour == thing.colour)
        if thing is not None and claim.place is not None:
            right["place"].append(claim.place == PLACES[thing.row][thing.column])
    return Captions(
        chair([score_caption(text, s.categories, parser) for text, s in zip(texts, scenes, strict=True)]),
        100 * grammatical / len(texts),
        100 * float(np.mean(right["colour"] or [0.0])),
        100 * float(np.mean(right["place"] or [0.0])),
    )


@dataclass(frozen=True)
class Habit:
    """Where hallucinated objects come from (an object counts once a caption).

    `partner_share`: percent of hallucinated objects whose anchor is in the picture; `with_anchor` and
    `without_anchor`: P(partner named | partner absent, anchor present or absent).
    """

    partner_share: float
    with_anchor: float
    without_anchor: float
    n_hallucinated: int
    partner_named: float
    """P(partner named | partner present), visible or faint."""


def habit(texts: Sequence[str], scenes: Sequence[Scene], parser: ObjectParser) -> Habit:
    """How far hallucinations are partners of what is there."""
    hallucinated = from_anchor = 0
    named: dict[bool, list[bool]] = {True: [], False: []}
    there: list[bool] = []
    for text, s in zip(texts, scenes, strict=True):
        said = parser.objects([text])
        for category in said - s.categories:
            hallucinated += 1
            from_anchor += ANCHOR_OF.get(category) in s.categories
        for partner, anchor in ANCHOR_OF.items():
            if partner in s.categories:
                there.append(partner in said)
            else:
                named[anchor in s.categories].append(partner in said)
    return Habit(
        100 * from_anchor / max(hallucinated, 1),
        float(np.mean(named[True] or [0.0])),
        float(np.mean(named[False] or [0.0])),
        hallucinated,
        float(np.mean(there or [0.0])),
    )


@torch.no_grad()
def first_token_sink(model: Any, processor: Any, split: Split = "dev", n: int = 50, seed: int = 0) -> dict[str, float]:
    """`Sink_1` (eps 0.3, percent) on true captions of biased scenes.

    `text`: 64 tokens without a picture; `image`: the whole sequence with it.
    """
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    rates: dict[str, list[float]] = {"text": [], "image": []}
    bos = processor.tokenizer.bos_token
    first = "" if processor.tokenizer("a").input_ids[0] == processor.tokenizer.bos_token_id else bos
    for index in range(n):
        s, rng = scene("biased", split, index, seed), np.random.default_rng([seed, 6, index])
        told = " ".join(caption(s, rng).text for _ in range(3))
        text = processor.tokenizer(first + told, return_tensors="pt").input_ids[:, :64]
        pictured = processor(images=[picture(s)], text=[first + processor.image_token + told], return_tensors="pt")
        for name, inputs in (("text", {"input_ids": text}), ("image", dict(pictured))):
            inputs = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
            maps = model(**inputs, output_attentions=True).attentions
            rates[name].append(sink_rate(torch.stack(maps).float()))
    model.set_attn_implementation({"text_config": before})
    return {name: float(np.mean(values)) for name, values in rates.items()}


def told(model: Any, processor: Any, kind: Kind, split: Split, n: int, seed: int = 0) -> dict[str, Any]:
    """Captions of scenes of a kind, judged; with the first three of them."""
    parser = ObjectParser.coco()
    scenes = [scene(kind, split, i, seed) for i in range(n)]
    texts = describe(model, processor, scenes, title=f"{kind} captions")
    figures = asdict(judge(texts, scenes, parser))
    return figures | {"habit": asdict(habit(texts, scenes, parser)), "examples": texts[:3]}


def examine(
    model: Any, processor: Any, split: Split, n: int, seed: int = 0, pope_scenes: int | None = None
) -> dict[str, Any]:
    """Every figure of the card on one split, as plain numbers; questions about the first `pope_scenes` scenes."""
    asked = pope_scenes or n
    figures: dict[str, Any] = {"split": split, "scenes": n, "pope_scenes": asked}
    for kind in ("biased", "broken"):
        figures[kind] = told(model, processor, kind, split, n, seed)
        figures[kind]["pope"] = {
            setting: asdict(
                ask(
                    model,
                    processor,
                    kind,
                    split,
                    pope_questions(kind, split, asked, setting, seed),
                    f"{kind} POPE {setting}",
                    seed,
                )
            )
            for setting in POPE_SETTINGS
        }
    figures["faint"] = told(model, processor, "faint", split, n, seed)
    scenes = [scene("biased", split, i, seed) for i in range(n)]
    moved = [picture(s) for s in scenes[1:] + scenes[:1]]
    figures["shuffled_recall"] = judge(
        describe(model, processor, scenes, moved, "shuffled captions"), scenes, ObjectParser.coco()
    ).chair.recall
    figures["sink_1"] = first_token_sink(model, processor, split, seed=seed)
    return figures
