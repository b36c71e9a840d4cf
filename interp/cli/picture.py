"""One picture and its caption, for the commands that look at one: a file and a text, or what a study wrote."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from interp.data import read_image
from interp.experiments.written import Written, WrittenRun
from interp.models import LVLM, Inputs


@dataclass(frozen=True)
class Shown:
    """A loaded model with a prompt about one picture; `written` is the caption of a study, if it comes from one."""

    model: LVLM
    picture: Image.Image
    name: str
    prompt: str
    inputs: Inputs
    written: Written | None

    def follow(self, text: str | None, max_new_tokens: int) -> Int[Tensor, " token"]:
        """The tokens of a caption: the study's, those of a text, or the model's own (None or an empty text).

        What a text leaves open is said on standard error: the model may have written it with other tokens.
        """
        if self.written is not None:
            return self.written.tokens.to(self.model.device)
        if not text:
            return self.model.generate(self.inputs, max_new_tokens).tokens[0]
        found = self.model.answer(text, self.inputs.texts[0])
        if found.doubt is not None:
            told = "take a study's own tokens with --run DIR --image-id N"
            print(
                f"interp: the caption may have been written with other tokens ({found.doubt}); {told}", file=sys.stderr
            )
        return found.ids.to(self.model.device)


def show(
    load: Any, image: str | None, prompt: str, run: str | None, image_id: str | None, method: str = "greedy"
) -> Shown:
    """Open a picture file with the model that `load()` gives, or image `image_id` of a study with the study's model.

    Raises ValueError unless there is exactly one of them.
    """
    if (image is None) == (run is None) or (run is None) != (image_id is None):
        raise ValueError("expected either --image FILE, or --run DIR with --image-id N")
    if run is None:
        picture, model = read_image(Path(str(image))), load()
        return Shown(model, picture, str(image), prompt, model.inputs([picture], prompt), None)
    found = WrittenRun.read(run, method)
    written = found.caption(next((i for i in found.captions if str(i) == image_id), str(image_id)))
    model, picture = found.load(), found.sample(written.image_id).image
    inputs = model.inputs([picture], found.prompt)
    return Shown(model, picture, f"{run}, image {image_id}", found.prompt, inputs, written)
