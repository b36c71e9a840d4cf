"""Vision-aware head reinforcement (VHR): amplify the heads whose output the image changes most.

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, eqs. 6 and 7, algorithm 1.

Symbols: `VHD[l,i]` is `vhd`; `TA[l,i] = ||A[l,i](no image)||^2` is `text_energy`; `H_l` is `heads`; `alpha`
keeps its name.  The paper leaves open, and this file makes a parameter: the standard deviation
(`deviation`, default sample) and whether the image-free stream is reinforced too (`reinforce_twin`, default
yes, so that both streams differ by the image only).  `alpha` and `layers` default to the paper's settings
for LLaVA-1.5-7b, the layers scaled to the depth of the model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.interventions.heads import scaled_heads
from interp.metrics.vhd import head_divergence
from interp.models import LVLM, Inputs, paired, visit
from interp.trace import streams

CHOICES = ("vision-aware", "bottom", "random")
DEVIATIONS = ("sample", "population")


@dataclass(frozen=True)
class HeadSelection:
    """What VHR chose for a batch: `heads` are the reinforced ones, `vhd` what it saw when it chose."""

    heads: Bool[Tensor, "batch layer head"]
    vhd: Float[Tensor, "batch layer head"]


def paper_layers(n_layers: int) -> tuple[int, ...]:
    """The second layer and the last 14 of 32 (LLaVA-1.5-7b), scaled to `n_layers`."""
    last = round(n_layers * 14 / 32)
    return tuple(sorted({min(1, n_layers - 1), *range(n_layers - last, n_layers)}))


def negative_outliers(
    vhd: Float[Tensor, "*batch head"], text_energy: Float[Tensor, "*batch head"], deviation: str = "sample"
) -> Bool[Tensor, "*batch head"]:
    """Heads that fire because the image is gone (eq. 6): both values above the layer's mean + standard deviation."""

    def high(x: Tensor) -> Tensor:
        return x > x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=deviation == "sample")

    return high(vhd) & high(text_energy)


def vision_aware_heads(
    vhd: Float[Tensor, "*batch head"], text_energy: Float[Tensor, "*batch head"], deviation: str = "sample"
) -> Bool[Tensor, "*batch head"]:
    """`H_l` (eq. 7): heads whose VHD, outliers set to zero, is above the median of the layer."""
    cleaned = vhd.masked_fill(negative_outliers(vhd, text_energy, deviation), 0.0)
    return cleaned > cleaned.quantile(0.5, dim=-1, keepdim=True)


@dataclass(frozen=True)
class VHR:
    """Heads that the picture moves are amplified: `with VHR(alpha=2.0)(model): model.generate(...)`.

    `choice="bottom"` and `choice="random"` are its controls: in each layer as many heads as VHR would take,
    the ones of lowest VHD, or a set drawn from `seed` and kept for all images.  `alpha=1` changes nothing.
    """

    alpha: float = 2.0
    layers: tuple[int, ...] | None = None
    choice: str = "vision-aware"
    deviation: str = "sample"
    reinforce_twin: bool = True
    seed: int = 0

    citation: ClassVar[str] = "He et al., ACL 2025, arXiv 2412.13949"
    cost: ClassVar[str] = "one prefill with and without the picture"
    off: ClassVar[str] = "alpha=1"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is a factor above 0, got {self.alpha}")
        if self.choice not in CHOICES:
            raise ValueError(f"choice is one of {', '.join(CHOICES)}, got {self.choice!r}")
        if self.deviation not in DEVIATIONS:
            raise ValueError(f"deviation is one of {', '.join(DEVIATIONS)}, got {self.deviation!r}")

    def _chosen_layers(self, model: LVLM) -> tuple[int, ...]:
        layers = paper_layers(model.n_layers) if self.layers is None else self.layers
        wrong = [layer for layer in layers if not 0 <= layer < model.n_layers]
        if wrong:
            raise ValueError(f"layers are between 0 and {model.n_layers - 1} in this model, got {wrong}")
        return layers

    def _control(self, layer: int, vhd: Tensor, vision_aware: Tensor) -> Tensor:
        """As many heads as VHR takes, chosen otherwise: the first ones of another order."""
        if self.choice == "vision-aware":
            return vision_aware
        if self.choice == "bottom":
            order = vhd.argsort(-1)
        else:
            shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
            order = torch.randperm(vhd.shape[-1], generator=shuffle).to(vhd.device).expand_as(vhd)
        rank = order.argsort(-1)
        return rank < vision_aware.sum(-1, keepdim=True)

    def select(self, model: LVLM, inputs: Inputs) -> HeadSelection:
        """Choose the heads, layer by layer in one traced pass: each layer sees the earlier ones reinforced."""
        layers = self._chosen_layers(model)
        heads = torch.zeros(len(inputs.input_ids), model.n_layers, model.n_heads, dtype=torch.bool, device=model.device)
        vhd = torch.zeros(heads.shape, device=model.device)

        def reinforce(layer: int, z: Tensor) -> Tensor | None:
            with_image, without = streams(z[:, -1])
            vhd[:, layer] = head_divergence(with_image, without)
            if layer not in layers:
                return None
            text_energy = without.float().square().sum(-1).to(vhd.device)
            heads[:, layer] = self._control(
                layer, vhd[:, layer], vision_aware_heads(vhd[:, layer], text_energy, self.deviation)
            )
            factor = torch.where(heads[:, layer], self.alpha, 1.0).to(z)
            twin = factor if self.reinforce_twin else torch.ones_like(factor)
            return z * torch.stack([factor, twin], 1).flatten(0, 1)[:, None, :, None]

        visit(model, paired(model, inputs), {"z": reinforce})
        return HeadSelection(heads, vhd)

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs, record: list[HeadSelection]) -> Iterator[None]:
        record.append(self.select(model, inputs))
        with scaled_heads(model, torch.where(record[-1].heads, self.alpha, 1.0)):
            yield

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[list[HeadSelection]]:
        """Steer `model.generate` while open; yields the list to which each batch adds its `HeadSelection`."""
        self._chosen_layers(model)
        record: list[HeadSelection] = []

        def steering(steered: LVLM, inputs: Inputs) -> AbstractContextManager[None]:
            return self._steer(steered, inputs, record)

        with model.steered(steering):
            yield record
