"""The eye of a model and its first words: the shipped tower, and a projector fitted to the decoder's embeddings."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from interp.testbed import WEIGHTS
from interp.testbed.batches import Pool
from interp.testbed.language import PLACES
from interp.testbed.tower import PATCH, render
from interp.testbed.world import CATEGORIES, COLOURS, GRID, IMAGE_SIZE


def shipped_tower() -> CLIPVisionModel:
    """The tower of the bundled testbed, in float32."""
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS / "testbed", dtype=torch.float32)
    return model.model.vision_tower.eval().requires_grad_(False)


def _word_embeddings(embed: nn.Embedding, tokenizer: Any, words: tuple[str, ...]) -> Float[Tensor, "word width"]:
    """Mean embedding of each word's tokens; row 0, for the ground, is zero."""
    rows = [torch.zeros(embed.embedding_dim)]
    for word in words:
        rows.append(embed.weight[tokenizer.encode(" " + word, add_special_tokens=False)].detach().mean(0))
    return torch.stack(rows)


def _place_embeddings(embed: nn.Embedding, tokenizer: Any) -> Float[Tensor, "image_token width"]:
    """Mean embedding of the place words of the cell that each patch lies in."""
    patches = IMAGE_SIZE // PATCH
    cell = [i * GRID // patches for i in range(patches)]
    words = tuple(PLACES[row][column] for row in cell for column in cell)
    return _word_embeddings(embed, tokenizer, words)[1:]


def warm_start(model: Any, tokenizer: Any, pool: Pool, *, steps: int, place: float = 0.0) -> float:
    """Fit the projector alone to words of each patch; returns the relative error.

    A patch's target is its category word, half its colour word and `place` times the words of its place.
    """
    embed = model.model.language_model.get_input_embeddings()
    names = _word_embeddings(embed, tokenizer, CATEGORIES)
    colours = _word_embeddings(embed, tokenizer, tuple(COLOURS))
    places = place * _place_embeddings(embed, tokenizer)
    n = min(1000, pool.kinds[0][1])
    labels = torch.from_numpy(render(pool.kinds[0][0], "train", n, pool.seed, labelled=True)[1]).long()
    projector = model.model.multi_modal_projector
    optimiser = torch.optim.Adam(projector.parameters(), lr=2e-3)
    error = float("nan")
    for step in tqdm(range(steps), desc="projector", unit="step"):
        picks = torch.randint(n, (16,), generator=torch.Generator().manual_seed(pool.seed + step))
        target = names[labels[picks, 0]] + 0.5 * colours[labels[picks, 1]]
        target = target + places * (labels[picks, 0] > 0)[..., None]
        got = projector(torch.from_numpy(pool.features[picks.numpy()]).float())
        loss = (got - target).square().sum() / target.square().sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        error = loss.item()
    return error
