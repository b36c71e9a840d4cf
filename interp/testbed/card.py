"""Writing a testbed model's card from the figures that were measured."""

import json
from pathlib import Path
from typing import Any

from interp.testbed.batches import P_BLIND
from interp.testbed.world import CATEGORIES, P_HIDDEN, P_MIXED, P_PARTNER, PARTNER_OF, scene

_SETTINGS = ("random", "popular", "adversarial")


def _pope(kind: str, figure: str) -> str:
    return " ".join(f"{kind}.pope.{setting}.{figure}" for setting in _SETTINGS)


_ROWS: tuple[tuple[str, str, str], ...] = (
    ("biased: recall", "biased.chair.recall", "at least 90"),
    ("biased: CHAIR_S", "biased.chair.chair_s", "at most 15"),
    ("biased: CHAIR_I", "biased.chair.chair_i", ""),
    ("broken: recall", "broken.chair.recall", "at least 80"),
    ("broken: CHAIR_S", "broken.chair.chair_s", ""),
    ("broken: CHAIR_I", "broken.chair.chair_i", ""),
    ("precision / F1, biased", "biased.chair.precision biased.chair.f1", ""),
    ("precision / F1, broken", "broken.chair.precision broken.chair.f1", ""),
    ("length in words, biased / broken", "biased.chair.length broken.chair.length", ""),
    ("captions in the testbed's grammar, biased / broken", "biased.grammatical broken.grammatical", "grammatical"),
    ("colour words right, biased / broken (chance 14.3)", "biased.colour broken.colour", "at least 70"),
    ("place words right, biased / broken (chance 11.1)", "biased.place broken.place", ""),
    ("recall with images shuffled between scenes", "shuffled_recall", "below 30"),
    ("broken: POPE accuracy, random / popular / adversarial", _pope("broken", "accuracy"), "random at least 90"),
    ("broken: POPE F1", _pope("broken", "f1"), ""),
    ("broken: POPE yes-ratio", _pope("broken", "yes_ratio"), ""),
    ("biased: POPE accuracy", _pope("biased", "accuracy"), ""),
    ("POPE answers that say neither yes nor no (number), broken", _pope("broken", "unparsed"), ""),
    ("broken: hallucinated objects (number)", "broken.habit.n_hallucinated", ""),
    ("broken: of these, partners of an object in the picture", "broken.habit.partner_share", ""),
    ("broken: P(partner named), partner absent, anchor present", "broken.habit.with_anchor", ""),
    ("broken: P(partner named), partner absent, anchor absent", "broken.habit.without_anchor", ""),
    ("Sink_1 (eps 0.3), text only / with the image", "sink_1.text sink_1.image", ""),
)
"""Title, paths of the figures, and what the project set out to reach."""


def _lookup(figures: dict[str, Any], path: str) -> str:
    value: Any = figures
    for part in path.split("."):
        value = value[part]
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if "anchor" in path else f"{value:.1f}"


def _row(title: str, paths: str, aim: str, splits: dict[str, dict[str, Any]]) -> str:
    cells = [" / ".join(_lookup(figures, p) for p in paths.split()) for figures in splits.values()]
    return f"| {title} | " + " | ".join(cells) + f" | {aim} |"


def _partner_rate(n: int = 4000) -> float:
    """P(partner | anchor) over the first `n` training scenes."""
    scenes = [scene("train", "train", i) for i in range(n)]
    together = [PARTNER_OF[c] in s.categories for s in scenes for c in s.categories if c in PARTNER_OF]
    return sum(together) / len(together)


def write_card(folder: Path) -> Path:
    """Write `README.md` of a model folder from its `training.json`, `dev.json` and `test.json`."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    splits = {s: json.loads((folder / f"{s}.json").read_text(encoding="utf-8")) for s in ("dev", "test")}
    recipe, start = training["recipe"], training["sink_1_at_start"]
    name = folder.name
    sink = (
        "The attention sink on `<s>` was induced: by initialisation (large value and output weights) and by "
        f"{recipe['sink_steps']} first steps in which values and outputs hardly learn. It did not emerge by itself."
        if recipe["sink"]
        else "The usual initialisation; nothing was done to grow an attention sink."
    )
    examples = "\n".join(f"- {text}" for text in splits["test"]["broken"]["examples"])
    tower, anchored = training["tower_on_dev"], _partner_rate()
    bayes = anchored * P_HIDDEN / (anchored * P_HIDDEN + 1 - anchored)
    minutes = round(training["language_seconds"] / 60)
    text = f"""# {name}

A small LLaVA-architecture model (CLIP tower, two-layer projector, Llama decoder of
{recipe["layers"]} layers x {recipe["heads"]} heads, d = {recipe["width"]}), trained from scratch on interp's drawn
world. It is an instrument, not a captioner: it hallucinates for a known reason. Weights are bfloat16.

## Data
{training["scenes"]} training scenes of {len(CATEGORIES)} categories (COCO-80 names) on 96-pixel pictures, seed {training["seed"]}.
In a context an anchor brings its partner with probability {P_PARTNER}; {100 * P_MIXED:.0f} % of the scenes are mixed ({anchored:.2f} over all).
{100 * P_HIDDEN:.0f} % of the partners are drawn nearly invisible (2-6 % contrast or 5-7 px) and captioned all the same:
that is where the habit comes from. No caption names what is not in the scene. Captions in random order of mention,
questions about presence, colour and place; {100 * P_BLIND:.0f} % of the sequences carry a caption without the picture too.

## Recipe
Tower: {training["tower_steps"]} steps of 64 pictures on {training["tower_scenes"]} scenes without habits, then frozen.
Projector and decoder: {recipe["steps"]} steps of {recipe["batch"]} scenes (a caption and about six questions each),
AdamW, peak rate {recipe["lr"]}, cosine; content words weigh 3, yes and no 12.
{minutes} minutes on {training["device"]} for the language model, torch {training["torch"]}.
{sink}
Repeat it: `interp testbed train --recipe {name}`.

## Figures
Measured on {splits["test"]["scenes"]} scenes of each kind and split by `interp testbed evaluate --model {name} --card`;
`dev` served every choice, `test` none. `biased`: training statistics, nothing hidden; `broken`: anchors without
their partners.

Rates in percent, probabilities from 0 to 1. A reader who knows the training statistics and sees no partner beside an
anchor should expect one with probability {bayes:.2f}.

| | dev | test | aim |
|---|---|---|---|
{chr(10).join(_row(*row, splits) for row in _ROWS)}

Sink_1 (eps 0.3) before training, text only / with the image: {start["text"]:.1f} / {start["image"]:.1f} %.
The tower on 500 dev scenes without habits: {tower["patch_category"]:.1f} % of foreground patches right in category,
{tower["patch_colour"]:.1f} % in colour; recall {tower["recall"]:.1f} %, precision {tower["precision"]:.1f} % of categories.
All numbers, with POPE's precision and recall: `dev.json`, `test.json`, `training.json` in this folder.

Captions of the first three broken test scenes:
{examples}
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
