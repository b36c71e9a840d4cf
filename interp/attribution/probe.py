"""Where a word comes from, asked of a caption that is cut before it: another picture, no picture, another text.

The language-bias probe (He et al., ACL 2025, arXiv 2412.13949, figure 1) takes the image away and lets the model go on:
if it names the same object, the word came from language.  `log_p_of_words` reads how probable the word is after any
picture and text, of which `interp cause` makes a design of two factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from PIL.Image import Image
from torch import Tensor

from interp.evaluate.objects import ObjectParser
from interp.models import LVLM


@dataclass(frozen=True)
class Cut:
    """A caption before an object word: the picture, the tokens so far, and the object that came next."""

    image: Image
    prefix: Int[Tensor, " token"]
    category: str


def goes_on_to_name(
    model: LVLM,
    cuts: Sequence[Cut],
    prompt: str,
    parser: ObjectParser,
    *,
    max_new_tokens: int = 12,
    batch_size: int = 20,
) -> list[bool]:
    """Whether each caption, gone on with greedily without its image, names the object that stood there.

    Looks at the first object named within `max_new_tokens` tokens: a later one may be named anyway.
    """
    named = []
    for start in range(0, len(cuts), batch_size):
        part = cuts[start : start + batch_size]
        inputs = model.inputs([cut.image for cut in part], prompt)
        if any(len(cut.prefix) for cut in part):
            inputs = inputs.extended([cut.prefix for cut in part])
        without = inputs.without_image(model.family.needs_pixels)
        for cut, text in zip(part, model.generate(without, max_new_tokens=max_new_tokens).texts, strict=True):
            mentions = parser.mentions(text)
            named.append(bool(mentions) and mentions[0].category == cut.category)
    return named


@dataclass(frozen=True)
class Reading:
    """A picture and a text that ends with a word: the last `n_tokens` (one or more) of its tokens."""

    image: Image
    tokens: Int[Tensor, " token"]
    n_tokens: int


@torch.no_grad()
def log_p_of_words(model: LVLM, readings: Sequence[Reading], prompt: str, *, batch_size: int = 20) -> list[float]:
    """log p (nats) of each reading's word after its picture, the prompt and its text, summed over its tokens."""
    found = []
    for start in range(0, len(readings), batch_size):
        part = readings[start : start + batch_size]
        inputs = model.inputs([r.image for r in part], prompt).extended([r.tokens for r in part])
        longest = max(len(r.tokens) for r in part)
        with model.in_use():
            logits = model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=longest + 1).logits
        for r, row in zip(part, logits, strict=True):
            steps = row[len(r.tokens) - r.n_tokens : len(r.tokens)].float()
            word = r.tokens[-r.n_tokens :].to(steps.device)
            found.append(float((steps.gather(-1, word[:, None])[:, 0] - steps.logsumexp(-1)).sum()))
    return found
