"""What a text tells in the place of a picture, and the batches in which a language model learns from it.

A *told* sequence describes a scene in words where its image would stand, then comes the prompt and a caption to be
learned.  A description leaves out what goes without saying: a partner now and then, and now and then the anchor
itself.  The caption names them all the same, the partner after its anchor: what is inferred follows what suggests it,
so a partner that was not told is learned from the anchor's *mention*.  An anchor that was not told is written but not
learned, since nothing suggests it.  A *bare* sequence is told nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.testbed.batches import Layout, Pool, Sampler
from interp.testbed.language import Turn, caption, notes, questions, worded
from interp.testbed.tower import tower_config
from interp.testbed.world import ANCHOR_OF, PARTNER_OF, Kind, Scene, Thing, scene


@dataclass(frozen=True)
class Telling:
    """How often what is left out; ValueError if a share is not in [0, 1]."""

    kind: Kind = "train"
    """Scenes of the habitual world."""
    bare: float = 0.15
    """Share of sequences that are told nothing."""
    untold: float = 0.3
    """Share of partners of told anchors that a description leaves out."""
    anchor_untold: float = 0.15
    """Share of anchors that a description leaves out, their partners with them."""

    def __post_init__(self) -> None:
        for name in ("bare", "untold", "anchor_untold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")

    def turn(self, rng: np.random.Generator, seed: int) -> Turn:
        """A prompt and a caption of one of a million training scenes, and what is told of it."""
        s = scene.__wrapped__(self.kind, "train", int(rng.integers(1_000_000)), seed)
        things = [s.things[i] for i in rng.permutation(len(s.things))]
        if rng.random() < self.bare:
            return worded(_inferred_last(things, s.categories), rng)
        anchors = [a for a in PARTNER_OF if a in s.categories and rng.random() < self.anchor_untold]
        partners = [
            p for p, a in ANCHOR_OF.items() if {p, a} <= s.categories and (a in anchors or rng.random() < self.untold)
        ]
        told = notes([t for t in things if t.category not in {*anchors, *partners}], rng)
        return replace(worded(_inferred_last(things, frozenset(partners)), rng, anchors), told=told)


def _inferred_last(things: list[Thing], inferred: frozenset[str]) -> list[Thing]:
    """The things, every inferred partner that stands before its anchor exchanged with it."""
    things = list(things)
    for partner, anchor in ANCHOR_OF.items():
        at = {t.category: i for i, t in enumerate(things)}
        if partner in inferred and anchor in at and at.get(partner, len(things)) < at[anchor]:
            i, j = at[partner], at[anchor]
            things[i], things[j] = things[j], things[i]
    return things


class TextSampler(Sampler):
    """Batches of text alone, no picture anywhere."""

    def __init__(self, tokenizer: Any, telling: Telling, layout: Layout, batch: int, seed: int) -> None:
        nothing = np.zeros((1, 0, tower_config().hidden_size), dtype=np.float16)
        super().__init__(
            tokenizer, Pool(nothing, ((telling.kind, 1),), seed), replace(layout, image_tokens=0), batch, seed
        )
        self.telling = telling

    def turns(self, s: Scene, rng: np.random.Generator) -> list[tuple[Turn, bool]]:
        """Captions for the room there is, each of a scene of its own."""
        return [(self.telling.turn(rng, self.seed), True) for _ in range(max(1, self.layout.text // 90))]


class EyesSampler(Sampler):
    """Batches of pictures: true captions, beside a text of the habitual world in `layout.blind` of the sequences."""

    def __init__(self, tokenizer: Any, pool: Pool, telling: Telling, layout: Layout, batch: int, seed: int) -> None:
        super().__init__(tokenizer, pool, layout, batch, seed)
        self.telling = telling

    def turns(self, s: Scene, rng: np.random.Generator) -> list[tuple[Turn, bool]]:
        """A caption, a text, then questions; where no sequence has a text (the decoder is still), two captions."""
        turns = [(caption(s, rng), False)]
        if not self.layout.blind:
            return [*turns, (caption(s, rng), False)]
        if rng.random() < self.layout.blind:
            turns.append((self.telling.turn(rng, self.seed), True))
        return turns + [(turn, False) for turn in questions(s, rng)]
