"""AvisC: contrast with a reader that sees only the image tokens to which attention clings, whatever is asked.

Woo et al., "Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models",
Findings of ACL 2025, arXiv 2405.17820; sangminwoo/AvisC `avisc_sample.py` @40b3fc0, which agrees with the paper.

At the last token of the prompts: the fewest layers that hold `share` of the layers' attention to the picture; of their
mean attention, the image tokens below `mean + deviations x standard deviation` are not blind, and their embeddings
become zero for the weaker reader, whose logits are `phi`.  Then VCD's formula and floor.  Numbers there are draws at
temperature 1; the default here is greedy.  Features that a model adds to later layers (Qwen3-VL) stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.base import Kept, Method, Preset, Seed, Share, Weight, Within
from interp.interventions.primitives.contrast import Contrast, WeakerReader, drawing
from interp.metrics.selection import blind_tokens
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs
from interp.models.compat import layer_input
from interp.models.kernels import watched

SOURCE = "sangminwoo/AvisC scripts @40b3fc0 and its issue 12: share 0.5, one deviation, floor 0.1, draws"


@dataclass(frozen=True)
class AvisC(Method):
    """Contrast with a reader that sees only the image tokens to which attention clings.

    `share` of the attention to the picture chooses the layers; tokens from the mean plus `deviations` on stay.
    `temperature`: tokens are drawn, from `seed` (0: the likeliest is taken).
    """

    alpha: Weight = 2.5
    plausibility: Share = 0.1
    share: Kept = 0.5
    deviations: Annotated[float, Within(-100, 100)] = 1.0
    temperature: Annotated[float, Within(0, 100)] = 0.0
    seed: Seed = 0

    citation: ClassVar = "Woo et al., Findings of ACL 2025, arXiv 2405.17820"
    cost: ClassVar = "a further prefill, and a second forward pass for each step"
    off: ClassVar = "alpha=0"
    passes: ClassVar = {"main": "its logits are contrasted; the contrast pass only gives phi"}
    presets: ClassVar = {
        "llava-1.5": Preset({"alpha": 2.5, "temperature": 1.0}, SOURCE),
        "instructblip": Preset({"alpha": 3.0, "temperature": 1.0}, SOURCE),
    }
    needs_vision: ClassVar = True

    @torch.no_grad()
    def blind(self, model: LVLM, inputs: Inputs) -> Bool[Tensor, "batch token"]:
        """Which image tokens the weaker reader still sees."""
        found: dict[int, Tensor] = {}

        def watch_of(layer: int) -> Any:
            def watch(call: AttentionCall) -> None:
                n = call.query.shape[2]
                found[layer] = call.block(n - 1, n).pattern()[:, :, 0].float()

            return watch

        watches = {model.part(layer, model.family.attention): watch_of(layer) for layer in range(model.n_layers)}
        with watched(model.decoder_configs, watches), model.passing("choice", owner=self):
            model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1)
        blind = torch.zeros_like(inputs.image_mask)
        for row, image in enumerate(inputs.image_mask):
            size = len(image)  # a sliding window may hold fewer keys
            looks = [torch.nn.functional.pad(a[row], (size - a.shape[-1], 0))[:, image] for a in found.values()]
            blind[row, image] = blind_tokens(torch.stack(looks), self.share, self.deviations)
        return blind

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step."""
        if not self.alpha:
            yield GenerateOptions()
            return
        unseen = inputs.image_mask & ~self.blind(model, inputs)
        phi = WeakerReader(model, inputs, owner := object())

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if model.now.owner is not owner or model.now.goes_on(layer_input(args, kwargs).shape[1]):
                return None
            x = layer_input(args, kwargs)
            x = x.masked_fill(unseen.to(x.device)[..., None], 0)
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        handle = model.layer(0).register_forward_pre_hook(before, with_kwargs=True)
        contrast = Contrast(phi, self.alpha, self.plausibility)
        try:
            with drawing(self.temperature, self.seed) as drawn:
                yield GenerateOptions(processors=(contrast,), in_step=True, sampling=drawn)
        finally:
            handle.remove()
