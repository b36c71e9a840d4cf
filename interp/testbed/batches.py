"""Training batches of the language model: all branches of a picture in one sequence.

A sequence is what stands before the image (`<s>`), the image tokens, then several independent branches:
a caption, questions, now and then a caption without the picture.  A branch sees the start, the image and
itself, and its positions begin right after the image, so each branch is exactly what the model meets in
use, while the image is read once.  In a branch without the picture the image is masked and positions begin
right after what stands before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.testbed.build import IMAGE_TOKENS, prompt_text
from interp.testbed.language import Piece, Turn, caption, questions
from interp.testbed.world import Kind, Scene, scene

P_BLIND = 0.15
"""Share of sequences that also carry a caption without the picture: what a language model learns before it sees."""


@dataclass(frozen=True)
class Layout:
    """How a sequence is written: the ids `before` the image, a question as a `prompt`, `text` positions for branches.

    `opens` is what an answer begins with: " " after `ASSISTANT:`, nothing after a line break.
    """

    before: tuple[int, ...]
    prompt: Callable[[str], str]
    opens: str = " "
    text: int = 175
    blind: float = P_BLIND
    """Share of sequences with a caption without the picture."""
    image_tokens: int = IMAGE_TOKENS
    """0 for text alone."""

    @property
    def prefix(self) -> int:
        """Positions before the branches: `before` and the image tokens."""
        return len(self.before) + self.image_tokens


def layout_of_testbed(tokenizer: Any) -> Layout:
    """The layout of the testbed's own chat template."""
    return Layout((tokenizer.bos_token_id,), prompt_text)


@dataclass(frozen=True)
class Pool:
    """Training scenes by kind and number, and their image features one after the other."""

    features: Float[np.ndarray, "scene image_token d_vision"]
    kinds: tuple[tuple[Kind, int], ...]
    seed: int

    def scene(self, index: int) -> Scene:
        """The scene of a row of features."""
        for kind, n in self.kinds:
            if index < n:
                return scene.__wrapped__(kind, "train", index, self.seed)
            index -= n
        raise IndexError("the pool has no such scene")


@dataclass(frozen=True)
class Batch:
    """Tensors of one step; `text` and `target` hold the text positions only."""

    features: Float[Tensor, "batch image_token d_vision"]
    text: Int[Tensor, "batch text"]
    target: Int[Tensor, "batch text"]
    weight: Float[Tensor, "batch text"]
    position: Int[Tensor, "batch token"]
    visible: Bool[Tensor, "batch 1 query key"]


class Sampler:
    """Makes the batch of a step from its number alone, so that a resumed run sees the same data."""

    def __init__(self, tokenizer: Any, pool: Pool, layout: Layout, batch: int, seed: int) -> None:
        self.tokenizer, self.pool, self.layout, self.batch, self.seed = tokenizer, pool, layout, batch, seed
        self.encode = lru_cache(maxsize=50_000)(
            lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False))
        )

    def _branch(self, turn: Turn) -> tuple[list[int], list[float]]:
        """Token ids and loss weights (0 for the prompt) of one branch."""
        ids = [*self.encode(turn.told), *self.encode(self.layout.prompt(turn.prompt))]
        weights = [0.0] * len(ids)
        first = turn.answer[0]._replace(text=self.layout.opens + turn.answer[0].text.lstrip())
        for piece in (first, *turn.answer[1:], Piece(self.tokenizer.eos_token, 1.0)):
            new = self.encode(piece.text)
            ids += new
            weights += [piece.weight] * len(new)
        return ids, weights

    def turns(self, s: Scene, rng: np.random.Generator) -> list[tuple[Turn, bool]]:
        """What is said of a scene, most important first, and whether it is said without the picture."""
        turns = [(caption(s, rng), False)]
        if rng.random() < self.layout.blind:
            turns.append((caption(s, rng), True))
        return turns + [(turn, False) for turn in questions(s, rng)]

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, 8, step])
        before, prefix, text = len(self.layout.before), self.layout.prefix, self.layout.text
        picks = rng.integers(0, len(self.pool.features), size=self.batch)
        ids = np.zeros((self.batch, text + 1), dtype=np.int64)
        weight = np.zeros((self.batch, text + 1), dtype=np.float32)
        branch = np.zeros((self.batch, prefix + text), dtype=np.int64)
        blind = np.zeros((self.batch, prefix + text), dtype=bool)
        position = np.tile(np.arange(prefix + text), (self.batch, 1))
        for row, pick in enumerate(picks):
            at = 0
            branch[row, prefix:] = -1
            for number, (turn, without) in enumerate(self.turns(self.pool.scene(int(pick)), rng), 1):
                new, weights = self._branch(turn)
                if at + len(new) > text:
                    continue
                ids[row, at : at + len(new)], weight[row, at : at + len(new)] = new, weights
                place = slice(prefix + at, prefix + at + len(new))
                branch[row, place], blind[row, place] = number, without
                position[row, place] = (before if without else prefix) + np.arange(len(new))
                at += len(new)
        target, target_weight = ids[:, 1:].copy(), weight[:, 1:].copy()
        target_weight[branch[:, prefix:] != np.pad(branch[:, prefix + 1 :], ((0, 0), (0, 1)), constant_values=-1)] = 0
        b, q = torch.from_numpy(branch), torch.arange(prefix + text)
        prefix_visible = (b[:, None, :] == 0) & ((q < before)[None, None] | ~torch.from_numpy(blind)[:, :, None])
        visible = ((b[:, :, None] == b[:, None, :]) | prefix_visible) & (q[:, None] >= q[None, :])
        return Batch(
            torch.from_numpy(self.pool.features[picks]).float(),
            torch.from_numpy(ids[:, :text]),
            torch.from_numpy(target),
            torch.from_numpy(target_weight),
            torch.from_numpy(position),
            visible[:, None],
        )
