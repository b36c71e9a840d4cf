"""The language-bias probe: whether the text alone goes on to name the object that the model named.

He et al., ACL 2025, arXiv 2412.13949, figure 1: a caption is cut just before an object word, the image is taken away,
and the model goes on.  If it names the same object, the word came from language.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
