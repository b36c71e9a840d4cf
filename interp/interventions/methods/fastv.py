"""FastV: after a layer, only the image tokens to which the last prompt token attends most there.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
Vision-Language Models", ECCV 2024, arXiv 2403.06764.  The other image tokens leave the sequence; with `again`, and in
models whose layers need all of them, no later query sees them, which is the same for every token that is left.

Paper: ranked by the attention from all other tokens [recalled].  Released codes (pkunlp-icler/FastV): by the last
query's, mean over heads, in the layer before.  The one that drops (`llava-hf` @e5faf2a) ranks at the prefill; the one
that masks (@915bc16, without a cache) ranks again at each token, by the newest (`again`): here with a cache, so that
earlier tokens keep what they read by their own choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from interp.interventions.base import LAYER, Kept, Method, Preset, Within
from interp.interventions.primitives.hidden_keys import Left, over, without
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, attending
from interp.interventions.primitives.leaving_tokens import LeavingTokens, can_leave
from interp.metrics.selection import top_mask
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs


@dataclass(frozen=True)
class FastV(Method):
    """From layer `layer` on, the `keep` share of the image tokens that the last prompt token attends to most there.

    `again`: each new token chooses for itself.
    """

    keep: Kept = 0.5
    layer: Annotated[int, Within(1, 10_000), LAYER] = 2
    again: bool = False

    citation: ClassVar = "Chen et al., ECCV 2024, arXiv 2403.06764"
    cost: ClassVar = "attention scores of the last prompt token"
    off: ClassVar = "keep=1"
    passes: ClassVar = {"main": "image tokens leave the text that is written"}
    presets: ClassVar = {
        "llava-1.5": Preset({"keep": 0.5, "layer": 2}, "the paper's K and R, and pkunlp-icler/FastV README"),
        "lmms-eval": Preset({"keep": 0.5, "layer": 3}, "pkunlp-icler/FastV lmms-eval-with-kvcache @49dfad7"),
        "vasparse": Preset({"keep": 0.75, "layer": 2}, "as a baseline of VASparse, which kept 75 %"),
    }
    needs_vision: ClassVar = True

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Drop image tokens from the layer on, or hide them where they cannot be dropped."""
        if self.keep == 1:
            yield GenerateOptions()
            return
        kept: list[Tensor] = []

        def stays() -> Tensor | None:
            image = inputs.image_mask.to(kept[0].device).repeat_interleave(len(kept[0]) // len(inputs.image_mask), 0)
            return None if self.again or not can_leave(model) else kept[0] | ~image

        leaving = LeavingTokens(model, self.layer, stays)

        def choose(
            layer: int, call: AttentionCall, cache: NotedLayer[Left], marks: Marks
        ) -> tuple[AttentionCall, Tensor | None] | None:
            n = call.query.shape[2]
            for_good = not self.again and call.window is None
            if for_good and n == 1:
                return None if layer == self.layer - 1 else (over(call, cache, cache.notes), None)
            if leaving.n and leaving.order is not None and layer >= self.layer:  # they have left
                real = ~marks.padding(call, leaving.n).gather(-1, leaving.order.to(call.query.device))
                cache.notes.alive = None if real.all() else real[:, None].expand(-1, call.query.shape[1], -1)
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            if layer == self.layer - 1:  # shows where the last prompt token looks; attends as ever
                if self.again or n > 1:
                    last = call.block(n - 1, n).pattern()[:, :, 0].float().mean(1)
                    number = (self.keep * image.sum(-1, keepdim=True)).round().long()
                    kept[:] = [top_mask(last, image, 1.0, number)]
                return None
            # beams of one prompt keep the same tokens, so rows need not follow them
            kept_there = torch.nn.functional.pad(kept[0], (0, image.shape[1] - kept[0].shape[1])).to(image.device)
            gone = image & ~kept_there
            if for_good:
                real = call.visible[:, :, -1] & ~gone[:, None]
                without(call, cache, real.expand(*call.query.shape[:2], -1))
            seen = call.visible & ~gone[:, None, None]
            return replace(call, mask=seen | ~seen.any(-1, keepdim=True)), None

        layers = range(self.layer - 1, model.n_layers)
        with attending(model, inputs, choose, Left, layers=layers) as options, leaving.open(options.cache):
            yield options
