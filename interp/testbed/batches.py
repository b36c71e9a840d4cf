"""Training batches of the language model: all branches of a picture in one sequence.

A sequence is `<s>`, the image tokens, then several independent branches: a caption, questions, now and
then a caption without the picture.  A branch sees `<s>`, the image and itself, and its positions start
right after the image, so each branch is exactly what the model meets in use, while the image is read
once.  In a branch without the picture the image is masked and positions start right after `<s>`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.testbed.build import IMAGE_TOKENS, prompt_text
from interp.testbed.language import Piece, Turn, caption, questions
from interp.testbed.world import Scene, scene

PREFIX = 1 + IMAGE_TOKENS
TEXT = 175
"""Text positions of a training sequence; as many branches as fit."""
P_BLIND = 0.15
"""Share of sequences that also carry a caption without the picture: what a language model learns before it sees."""


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

    def __init__(self, processor: Any, features: np.ndarray, batch: int, seed: int) -> None:
        self.tokenizer, self.features, self.batch, self.seed = processor.tokenizer, features, batch, seed
        self.encode = lru_cache(maxsize=50_000)(
            lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False))
        )

    def _branch(self, turn: Turn) -> tuple[list[int], list[float]]:
        """Token ids and loss weights (0 for the prompt) of one branch."""
        ids = list(self.encode(prompt_text(turn.prompt)))
        weights = [0.0] * len(ids)
        for piece in (*turn.answer, Piece(self.tokenizer.eos_token, 1.0)):
            new = self.encode(piece.text)
            ids += new
            weights += [piece.weight] * len(new)
        return ids, weights

    def _turns(self, s: Scene, rng: np.random.Generator) -> list[tuple[Turn, bool]]:
        turns = [(caption(s, rng), False)]
        if rng.random() < P_BLIND:
            turns.append((caption(s, rng), True))
        return turns + [(turn, False) for turn in questions(s, rng)]

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, 8, step])
        picks = rng.integers(0, len(self.features), size=self.batch)
        ids = np.zeros((self.batch, TEXT + 1), dtype=np.int64)
        weight = np.zeros((self.batch, TEXT + 1), dtype=np.float32)
        branch = np.zeros((self.batch, PREFIX + TEXT), dtype=np.int64)
        blind = np.zeros((self.batch, PREFIX + TEXT), dtype=bool)
        position = np.tile(np.arange(PREFIX + TEXT), (self.batch, 1))
        for row, pick in enumerate(picks):
            at = 0
            branch[row, PREFIX:] = -1
            for number, (turn, without) in enumerate(
                self._turns(scene.__wrapped__("train", "train", int(pick), self.seed), rng), 1
            ):
                new, weights = self._branch(turn)
                if at + len(new) > TEXT:
                    continue
                ids[row, at : at + len(new)], weight[row, at : at + len(new)] = new, weights
                place = slice(PREFIX + at, PREFIX + at + len(new))
                branch[row, place], blind[row, place] = number, without
                position[row, place] = (1 if without else PREFIX) + np.arange(len(new))
                at += len(new)
        target, target_weight = ids[:, 1:].copy(), weight[:, 1:].copy()
        target_weight[branch[:, PREFIX:] != np.pad(branch[:, PREFIX + 1 :], ((0, 0), (0, 1)), constant_values=-1)] = 0
        b, q = torch.from_numpy(branch), torch.arange(PREFIX + TEXT)
        prefix_visible = (b[:, None, :] == 0) & ((q == 0)[None, None] | ~torch.from_numpy(blind)[:, :, None])
        visible = ((b[:, :, None] == b[:, None, :]) | prefix_visible) & (q[:, None] >= q[None, :])
        return Batch(
            torch.from_numpy(self.features[picks]).float(),
            torch.from_numpy(ids[:, :TEXT]),
            torch.from_numpy(target),
            torch.from_numpy(target_weight),
            torch.from_numpy(position),
            visible[:, None],
        )
