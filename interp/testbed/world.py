"""The drawn world: its categories, its habits (anchor and partner), its scenes and its splits.

A *partner* nearly always accompanies its *anchor* in training scenes; that habit is what a language
model can learn instead of looking.  Everything here is data and seeded sampling; drawing is in
`draw`, wording in `language`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

PAIRS: dict[str, dict[str, str]] = {
    "kitchen": {"fork": "knife", "cup": "bowl"},
    "street": {"car": "traffic light", "bicycle": "stop sign"},
    "living room": {"laptop": "mouse", "tv": "remote"},
    "park": {"dog": "frisbee", "cow": "sheep"},
    "beach": {"boat": "surfboard", "umbrella": "kite"},
}
"""Context -> anchor -> partner.  All names are COCO-80 categories."""

FILLERS: dict[str, tuple[str, ...]] = {
    "kitchen": ("bottle", "banana", "clock"),
    "street": ("bus", "bench", "clock"),
    "living room": ("couch", "keyboard", "clock"),
    "park": ("bench", "bird", "banana"),
    "beach": ("bird", "bottle", "bus"),
}
"""Context -> categories that appear there without any habit attached."""

PARTNER_OF: dict[str, str] = {a: p for pairs in PAIRS.values() for a, p in pairs.items()}
ANCHOR_OF: dict[str, str] = {p: a for a, p in PARTNER_OF.items()}
CATEGORIES: tuple[str, ...] = tuple(sorted({*PARTNER_OF, *ANCHOR_OF, *(f for fs in FILLERS.values() for f in fs)}))

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 36),
    "yellow": (246, 214, 40),
    "green": (34, 150, 60),
    "blue": (30, 84, 214),
    "purple": (138, 40, 170),
    "white": (250, 250, 250),
    "black": (14, 14, 16),
}

IMAGE_SIZE = 96
GRID = 3
CELL = IMAGE_SIZE // GRID

P_PARTNER = 0.97
"""P(partner | anchor) inside a context; about 0.93 over all training scenes, because 5 % are mixed."""
P_MIXED = 0.05
P_HIDDEN = 0.2
"""Share of partners that are drawn nearly invisible in training scenes, and still captioned."""

Kind = Literal["train", "unbiased", "biased", "broken", "faint"]
KINDS: tuple[str, ...] = get_args(Kind)
Split = Literal["train", "dev", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
EVALUATION_SCENES = 500
"""Scenes in each of dev and test, for each kind."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene: `row` and `column` are its cell in a 3x3 grid, lengths are in pixels."""

    category: str
    colour: str
    row: int
    column: int
    size: float
    offset: tuple[float, float]
    angle: float
    flip: bool
    contrast: float = 1.0

    @property
    def hidden(self) -> bool:
        """Whether the thing is drawn so faint or so small that it can hardly be seen."""
        return self.contrast < 0.5 or self.size < 10


@dataclass(frozen=True)
class Scene:
    """A scene: its things in no particular order, and the seed of its background."""

    context: str
    things: tuple[Thing, ...]
    background: int

    @property
    def categories(self) -> frozenset[str]:
        """The names of everything that is in the scene, hidden or not."""
        return frozenset(t.category for t in self.things)


def _choose_biased(rng: np.random.Generator, broken: bool) -> tuple[str, list[str]]:
    """Names of a contextual scene: one or two anchors, their partners (or none), fillers to 3-5 things."""
    context = str(rng.choice(list(PAIRS)))
    anchors = list(rng.permutation(list(PAIRS[context])))[: int(rng.integers(1, 3))]
    names = [str(a) for a in anchors]
    if not broken:
        names += [PARTNER_OF[a] for a in names if rng.random() < P_PARTNER]
    local = list(FILLERS[context])
    others = sorted({f for fs in FILLERS.values() for f in fs} - set(local))
    pool = [str(f) for f in [*rng.permutation(local), *rng.permutation(others)]]
    if rng.random() < 0.3:  # so that a filler is not always one of its context
        pool = [str(f) for f in rng.permutation(pool)]
    missing = int(rng.integers(3, 6)) - len(names)
    return context, names + pool[: max(missing, 1 if len(names) < 5 else 0)]


def _choose_uniform(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Names of a scene without habits: 2-5 different categories, uniformly."""
    return "mixed", [str(c) for c in rng.choice(CATEGORIES, size=int(rng.integers(2, 6)), replace=False)]


def _place(rng: np.random.Generator, name: str, cell: int, p_hidden: float) -> Thing:
    size, contrast = float(rng.uniform(24, 31)), 1.0
    if p_hidden and name in ANCHOR_OF and rng.random() < p_hidden:
        if rng.random() < 0.5:
            contrast = float(rng.uniform(0.02, 0.06))
        else:
            size = float(rng.uniform(5, 7))
    slack = (CELL - size) / 2
    return Thing(
        category=name,
        colour=str(rng.choice(list(COLOURS))),
        row=cell // GRID,
        column=cell % GRID,
        size=size,
        offset=(float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack))),
        angle=float(rng.uniform(-15, 15)),
        flip=bool(rng.random() < 0.5),
        contrast=contrast,
    )


def sample_scene(rng: np.random.Generator, kind: Kind) -> Scene:
    """Draw one scene of a kind.

    `train`: contextual, with hidden partners and a few mixed scenes; `biased`: the same with nothing
    hidden; `broken`: anchors never have their partner, nothing is hidden; `unbiased`: no habit at all;
    `faint`: as `biased`, with every partner drawn nearly invisible.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "unbiased" or (kind != "broken" and rng.random() < P_MIXED):
        context, names = _choose_uniform(rng)
    else:
        context, names = _choose_biased(rng, broken=kind == "broken")
    cells = rng.permutation(GRID * GRID)[: len(names)]
    p_hidden = {"train": P_HIDDEN, "faint": 1.0}.get(kind, 0.0)
    things = tuple(_place(rng, n, int(c), p_hidden) for n, c in zip(names, cells, strict=True))
    return Scene(context, things, int(rng.integers(2**31)))


@cache
def scene(kind: Kind, split: Split, index: int, seed: int = 0) -> Scene:
    """Scene `index` of a split: the same for the same arguments, independent of every other index."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"a scene's index is 0 or more, got {index}")
    rng = np.random.default_rng([seed, SPLITS.index(split), KINDS.index(kind), index])
    return sample_scene(rng, kind)
