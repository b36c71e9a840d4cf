"""Image-free prompts: the same prompts with the pictures taken away, alone or side by side with the batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from interp.models.inputs import Inputs, interleave
from interp.models.lvlm import LVLM

ImageFree = Literal["remove", "mask", "blank", "noise"]
IMAGE_FREE: tuple[ImageFree, ...] = get_args(ImageFree)
GREY = (127, 127, 127)
STEPS = 1000
PIXELS = "pixel_values"


def image_free(model: LVLM, inputs: Inputs, how: str = "remove", seed: int = 0) -> Inputs:
    """The image-free prompts of a batch; their text is the same.

    `remove` (default): image tokens, and the tokens that only frame them, are deleted from the sequence.
    `mask`: they keep their places (positions go on as with them), and no text position can attend to them.
    `blank`: each picture is replaced by a grey one of the same size.
    `noise`: each picture is replaced by one of the same size whose pixels are drawn uniformly, from `seed`.
    """
    if how not in IMAGE_FREE:
        raise ValueError(f"an image-free prompt is one of {', '.join(IMAGE_FREE)}, got {how!r}")
    if not any(inputs.pictures):
        raise ValueError("expected a batch with pictures to take away, got one without")
    if how == "remove":
        return inputs.without_image(model.family.needs_pixels)
    if how == "mask":
        return inputs.with_image_masked(model.family.needs_pixels)
    random = np.random.default_rng(seed)

    def other(picture: Image.Image) -> Image.Image:
        if how == "blank":
            return Image.new("RGB", picture.size, GREY)
        return Image.fromarray(random.integers(0, 256, (picture.height, picture.width, 3), dtype=np.uint8))

    pictures = tuple(tuple(other(picture) for picture in row) for row in inputs.pictures)
    return replace(inputs, pixels=model.processed(pictures, inputs.texts).pixels, pictures=pictures)


def diffused(inputs: Inputs, step: int = 500, seed: int = 0) -> Inputs:
    """The same prompts, the pixel values that the processor made mixed with noise, as step `step` of a diffusion does.

    `sqrt(a) x + sqrt(1 - a) e`, `e` standard normal from `seed`; `a` is the product over `step + 1` factors `1 - b` of
    a schedule of `STEPS` (DAMO-NLP-SG/VCD `vcd_add_noise.py`): at step 500 the signal is 0.863, the noise 0.505.
    """
    if not 0 <= step < STEPS:
        raise ValueError(f"a step of diffusion is between 0 and {STEPS - 1}, got {step}")
    if PIXELS not in inputs.pixels:
        raise ValueError(f"expected a batch with pictures as {PIXELS}, got {', '.join(inputs.pixels) or 'none'}")
    grown = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.double)) * (0.5e-2 - 1e-5) + 1e-5
    left = float((1 - grown[: step + 1]).prod())
    pixels = inputs.pixels[PIXELS]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(pixels)
    return replace(inputs, pixels=inputs.pixels | {PIXELS: left**0.5 * pixels + (1 - left) ** 0.5 * noise})


def paired(
    model: LVLM, inputs: Inputs, how: str = "remove", continuations: Sequence[Int[Tensor, " _"]] | None = None
) -> Inputs:
    """A batch and its image-free prompts as one batch, both followed by the same continuations if any are given.

    Each row is followed by its image-free one (an edit which repeats a row's factors for its copies serves both); the
    streams are aligned on the right: the same text stands at the same index.
    """
    without = image_free(model, inputs, how)
    if continuations is not None:
        inputs, without = inputs.extended(continuations), without.extended(continuations)
    both = interleave(inputs, without)
    if any(without.pictures):  # blank and noise have pixels of their own
        both = replace(both, pixels=model.processed(both.pictures, both.texts).pixels)
    return both
