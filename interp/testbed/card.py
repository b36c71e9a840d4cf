"""Writing a testbed model's card from the figures that were measured."""

import json
from pathlib import Path
from typing import Any

from interp.testbed.world import P_HIDDEN, P_MIXED, P_PARTNER

_ROWS: tuple[tuple[str, str], ...] = (
    ("biased: recall (%)", "biased.chair.recall"),
    ("biased: CHAIR_S / CHAIR_I (%)", "biased.chair.chair_s biased.chair.chair_i"),
    ("broken: recall (%)", "broken.chair.recall"),
    ("broken: CHAIR_S / CHAIR_I (%)", "broken.chair.chair_s broken.chair.chair_i"),
    ("captions in the testbed's grammar, biased / broken (%)", "biased.grammatical broken.grammatical"),
    ("colour words right, biased / broken (%; chance 14.3)", "biased.colour broken.colour"),
    ("place words right, biased / broken (%; chance 11.1)", "biased.place broken.place"),
    ("recall with images shuffled between scenes (%)", "shuffled_recall"),
    (
        "broken: POPE accuracy, random / popular / adversarial (%)",
        "+".join(f"broken.pope.{s}.accuracy" for s in ("random", "popular", "adversarial")),
    ),
    (
        "broken: POPE yes-ratio, random / popular / adversarial (%)",
        "+".join(f"broken.pope.{s}.yes_ratio" for s in ("random", "popular", "adversarial")),
    ),
    (
        "biased: POPE accuracy, random / popular / adversarial (%)",
        "+".join(f"biased.pope.{s}.accuracy" for s in ("random", "popular", "adversarial")),
    ),
    ("broken: hallucinated objects that are partners of a present one (%)", "broken.habit.partner_share"),
    (
        "broken: P(partner named, partner absent), anchor present / absent",
        "broken.habit.with_anchor broken.habit.without_anchor",
    ),
    ("Sink_1 after training, text only / with the image (%)", "sink_1.text sink_1.image"),
)


def _lookup(figures: dict[str, Any], path: str) -> str:
    value: Any = figures
    for part in path.split("."):
        value = value[part]
    return f"{value:.3f}" if "habit.with" in path else f"{value:.1f}"


def _row(title: str, paths: str, splits: dict[str, dict[str, Any]]) -> str:
    cells = [" / ".join(_lookup(figures, p) for p in paths.replace("+", " ").split()) for figures in splits.values()]
    return f"| {title} | " + " | ".join(cells) + " |"


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
    minutes = round(training["language_seconds"] / 60)
    text = f"""# {name}

A small LLaVA-architecture model (CLIP tower, two-layer projector, Llama decoder of
{recipe["layers"]} layers x {recipe["heads"]} heads, d = {recipe["width"]}), trained from scratch on interp's drawn
world. It is an instrument, not a captioner: it hallucinates for a known reason. Weights are bfloat16.

## Data
{training["scenes"]} training scenes of 28 categories (COCO-80 names) on 96-pixel pictures, seed {training["seed"]}.
In a context an anchor brings its partner with probability {P_PARTNER}; {100 * P_MIXED:.0f} % of the scenes are mixed.
{100 * P_HIDDEN:.0f} % of the partners are drawn nearly invisible (2-6 % contrast or 5-7 px) and captioned all the same:
that is where the habit comes from. No caption names what is not in the scene. Captions in random order of mention,
questions about presence, colour and place; 15 % of the sequences carry a caption without the picture too.

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

| | dev | test |
|---|---|---|
{chr(10).join(_row(title, paths, splits) for title, paths in _ROWS)}

Sink_1 (eps 0.3) before training, text only / with the image: {start["text"]:.1f} / {start["image"]:.1f} %.

Captions of the first three broken test scenes:
{examples}
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
