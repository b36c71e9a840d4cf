"""Making steering vectors: the difference of mean residual streams between two sets of inputs, or of words."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions.directions import Direction
from interp.models import LVLM, Inputs, image_free, read


@torch.no_grad()
def mean_stream(
    model: LVLM, inputs: Inputs, layer: int, positions: Sequence[Sequence[int]] | None = None
) -> Float[Tensor, " d_model"]:
    """The mean residual stream after a layer over positions of each row (None: each row's last), in float32.

    Raises ValueError if there is no position at all, or no such layer.
    """
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"this model has layers 0 to {model.n_layers - 1}, got {layer}")
    places = [[int(i)] for i in inputs.last] if positions is None else [list(row) for row in positions]
    longest = max(map(len, places), default=0)
    if not longest:
        raise ValueError("expected at least one position to take the mean of")
    at = torch.tensor([row + [0] * (longest - len(row)) for row in places], device=model.device)
    found = read(model, inputs, f"blocks.{layer}.resid_post", positions=at)[f"blocks.{layer}.resid_post"].float()
    return torch.cat([found[row, : len(chosen)] for row, chosen in enumerate(places)]).mean(0)


def between(model: LVLM, plus: Inputs, minus: Inputs, layer: int) -> Direction:
    """From one set of prompts or pictures to another: mean of `plus` less mean of `minus`, at their last positions."""
    return Direction(layer, mean_stream(model, plus, layer) - mean_stream(model, minus, layer))


def of_pictures(model: LVLM, inputs: Inputs, layer: int, how: str = "remove") -> Direction:
    """What the picture adds at the last position of a prompt: with it less without it (`how`: `image_free`)."""
    return between(model, inputs, image_free(model, inputs, how), layer)


def of_words(
    model: LVLM,
    inputs: Inputs,
    captions: Sequence[Int[Tensor, " _"]],
    correct: Sequence[Sequence[int]],
    wrong: Sequence[Sequence[int]],
    layer: int,
) -> Direction:
    """From hallucinated to correct words: the difference at the steps that write their first tokens.

    `correct` and `wrong` are those tokens' places in each caption.  ValueError if there is none of either.
    """
    whole, before = inputs.extended(captions), inputs.input_ids.shape[1] - 1
    steps = [[[before + t for t in row] for row in group] for group in (correct, wrong)]
    plus, minus = (mean_stream(model, whole, layer, positions) for positions in steps)
    return Direction(layer, plus - minus)
