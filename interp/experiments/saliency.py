"""In which reading of VASparse's eq. 4 its visual term can act: how many selections `lambda` changes.

    python -m interp.experiments.saliency --limit 20

For every generated token, layer and head of greedy captions, the keys kept with `lambda` are set against those kept
without.  Attention is the model's own, so that all readings choose from the same rows.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from interp.data import open_data
from interp.evaluate.objects import ObjectParser
from interp.interventions import VASparse
from interp.metrics.selection import running_softmax, top_mask
from interp.models import LVLM, AttentionCall, Inputs, load
from interp.models.kernels import watched

READINGS: tuple[str, ...] = get_args(get_type_hints(VASparse)["score"])
LAMBDAS = (0.01, 0.1, 1.0, 10.0)
PROMPT = "Please describe this image in detail."


@dataclass(frozen=True)
class Changed:
    """Of the selections with `keep` in `scope`, the share that each `lambda` changes, by reading."""

    share: Float[np.ndarray, "reading lambda"]
    n: int
    keep: float
    scope: str

    def __str__(self) -> str:
        lines = [f"{self.n} selections, keep {self.keep:g}, scope {self.scope}: share changed, %", "", "| score | "]
        lines[-1] += " | ".join(f"{value:g}" for value in LAMBDAS) + " |"
        lines.append("|---|" + "---|" * len(LAMBDAS))
        for name, row in zip(READINGS, self.share, strict=True):
            lines.append(f"| {name} | " + " | ".join(f"{100 * value:.2f}" for value in row) + " |")
        return "\n".join(lines)


def changed(
    model: LVLM, inputs: Inputs, written: Sequence[Tensor], keep: float, scope: str
) -> Float[Tensor, "reading lambda 2"]:
    """How many selections of the generated tokens change, and how many there are, where there is anything to choose."""
    whole, n_prompt = inputs.extended(list(written)), inputs.input_ids.shape[1]
    real, image = whole.attention_mask.bool(), whole.image_mask
    generated = real.clone()
    generated[:, :n_prompt] = False
    inside = {"generated": generated, "image": image, "all": real}[scope]
    counts = torch.zeros(len(READINGS), len(LAMBDAS), 2)

    def watch(call: AttentionCall) -> None:
        raw = call.pattern().float()
        paid = (raw * image[:, None, None]).sum(-1)[:, -1:]
        rows = slice(n_prompt, None)
        visible = call.visible[:, :, rows]
        saliency = running_softmax(paid, call.visible)[:, :, rows]
        choice = (inside[:, None, None] & visible).expand(-1, raw.shape[1], -1, -1)
        some = generated[:, None, rows] & (choice.sum(-1) > 1)
        for i, score in enumerate(READINGS):
            method = VASparse(score=score)  # pyright: ignore[reportArgumentType]
            importance = method.importance(call, raw)[:, :, rows]
            without = top_mask(importance, choice, keep)
            for j, weight in enumerate(LAMBDAS):
                other = (top_mask(importance + weight * saliency, choice, keep) != without).any(-1)
                counts[i, j] += torch.tensor([(other & some).sum(), some.sum()])

    parts: Any = {model.part(layer, model.family.attention): watch for layer in range(model.n_layers)}
    with torch.no_grad(), watched(model.decoder_configs, parts):
        model.hf(**whole.kwargs(), use_cache=False, logits_to_keep=1)
    return counts


def main(limit: int = 20, keep: float = 0.9, scope: str = "generated", batch_size: int = 10) -> None:
    """Print the table for broken test scenes and the bundled model."""
    model, data = load("testbed"), open_data("testbed:broken", "test", ObjectParser.coco())
    counts = torch.zeros(len(READINGS), len(LAMBDAS), 2)
    for start in range(0, limit, batch_size):
        ids = data.image_ids[start : min(start + batch_size, limit)]
        inputs = model.inputs([data.load(i).image for i in ids], PROMPT)
        counts += changed(model, inputs, model.generate(inputs, max_new_tokens=64).tokens, keep, scope)
    found = Changed((counts[..., 0] / counts[..., 1]).numpy(), int(counts[0, 0, 1]), keep, scope)
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    tyro.cli(main)
