"""Vision-aware head reinforcement (VHR): amplify the heads whose output the image changes most.

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, eqs. 6 and 7, algorithm 1.

Symbols: `VHD[l,i]` is `vhd`; `TA[l,i] = ||A[l,i](no image)||^2` is `text_energy`; `H_l` is `heads`; `alpha`
keeps its name.  The paper leaves open, and this file makes a parameter: the standard deviation
(`deviation`, default sample) and whether the image-free stream is reinforced too (`reinforce_image_free`, default
yes, so that both streams differ by the image only).  Layers default to the paper's for the model's family, scaled to
its depth (`PRESETS`).  `reselect` is a variant, not the paper's: sets are chosen anew at every step, while the cache
keeps what earlier sets wrote.  The paper's ablation "same heads for every image" is `EditHeads(op="scale")`.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.primitives.head_scaling import scaled_heads
from interp.metrics.vhd import head_divergence
from interp.models import IMAGE_FREE, LVLM, Inputs, head_results, paired, read, run_with_edits
from interp.trace.divergence import streams

CHOICES = ("vision-aware", "bottom", "random")
DEVIATIONS = ("sample", "population")


@dataclass(frozen=True)
class HeadSelection:
    """What VHR chose for a batch: `heads` are the reinforced ones, `vhd` what it saw when it chose."""

    heads: Bool[Tensor, "batch layer head"]
    vhd: Float[Tensor, "batch layer head"]


PRESETS = {"llava": (True, 14 / 32), "instructblip": (False, 18 / 32), "second": (True, 0.0), "all": (True, 1.0)}
"""Whether the second layer is reinforced, and which share of the last ones: LLaVA-1.5 and LLaVA-NeXT, InstructBLIP."""


def paper_layers(n_layers: int, preset: str = "llava") -> tuple[int, ...]:
    """Layers by a name in `PRESETS`, or the last ones by a share such as `last44%`, scaled to `n_layers`."""
    share = re.fullmatch(r"last(\d+(?:\.\d+)?)%", preset)
    if share is None and preset not in PRESETS:
        raise ValueError(f"preset is one of {', '.join(PRESETS)} or a share such as last44%, got {preset!r}")
    second, last = PRESETS[preset] if share is None else (False, float(share[1]) / 100)
    n_last = min(round(n_layers * last), n_layers)
    return tuple(sorted({*([min(1, n_layers - 1)] if second else []), *range(n_layers - n_last, n_layers)}))


def negative_outliers(
    vhd: Float[Tensor, "*batch head"], text_energy: Float[Tensor, "*batch head"], deviation: str = "sample"
) -> Bool[Tensor, "*batch head"]:
    """Heads that fire because the image is gone (eq. 6): both values above the layer's mean + standard deviation."""

    def high(x: Tensor) -> Tensor:
        return x > x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=deviation == "sample")

    return high(vhd) & high(text_energy)


def vision_aware_heads(
    vhd: Float[Tensor, "*batch head"],
    text_energy: Float[Tensor, "*batch head"],
    deviation: str = "sample",
    outliers: bool = True,
) -> Bool[Tensor, "*batch head"]:
    """`H_l` (eq. 7): heads whose VHD, outliers set to zero (unless not `outliers`), is above the layer's median."""
    cleaned = vhd.masked_fill(negative_outliers(vhd, text_energy, deviation), 0.0) if outliers else vhd
    return cleaned > cleaned.quantile(0.5, dim=-1, keepdim=True)


@dataclass(frozen=True)
class VHR:
    """Heads that the picture moves are amplified: `with VHR(alpha=2.0)(model): model.generate(...)`.

    `choice="bottom"` and `choice="random"` are its controls: in each layer as many heads as VHR would take,
    the ones of lowest VHD, or a set drawn from `seed` and kept for all images.  `alpha=1` changes nothing.

    `layers` are numbers, else `preset` says which (`auto`: the paper's for the family); `image_free` how the picture is
    taken away; `outliers=False` leaves out eq. 6; `reselect` chooses anew at every step.
    """

    alpha: float = 2.0
    layers: tuple[int, ...] | None = None
    preset: str = "auto"
    choice: str = "vision-aware"
    deviation: str = "sample"
    outliers: bool = True
    reinforce_image_free: bool = True
    image_free: str = "remove"
    reselect: bool = False
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
        if self.image_free not in IMAGE_FREE:
            raise ValueError(f"image_free is one of {', '.join(IMAGE_FREE)}, got {self.image_free!r}")
        if self.preset != "auto":
            paper_layers(32, self.preset)

    def _chosen_layers(self, model: LVLM) -> tuple[int, ...]:
        family = model.family.name if model.family.name in PRESETS else "llava"
        preset = family if self.preset == "auto" else self.preset
        layers = paper_layers(model.n_layers, preset) if self.layers is None else self.layers
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

    def select(self, model: LVLM, inputs: Inputs, written: Int[Tensor, "batch token"] | None = None) -> HeadSelection:
        """Choose the heads, layer by layer in one traced pass: each layer sees the earlier ones reinforced.

        At the last position of the prompts, or of the tokens `written` after them.
        """
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
                layer, vhd[:, layer], vision_aware_heads(vhd[:, layer], text_energy, self.deviation, self.outliers)
            )
            factor = torch.where(heads[:, layer], self.alpha, 1.0).to(z)
            without = factor if self.reinforce_image_free else torch.ones_like(factor)
            return z * torch.stack([factor, without], 1).flatten(0, 1)[:, None, :, None]

        run_with_edits(
            model, paired(model, inputs, self.image_free, None if written is None else list(written)), {"z": reinforce}
        )
        return HeadSelection(heads, vhd)

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs, record: list[HeadSelection]) -> Iterator[None]:
        record.append(self.select(model, inputs))
        scale = torch.where(record[-1].heads, self.alpha, 1.0)
        if not self.reselect:
            with scaled_heads(model, scale):
                yield
            return
        if model.family.needs_pixels:  # they generate inside their language model, which sees no token ids at first
            raise ValueError(f"reselect=true cannot follow what a {model.family.name} model generates")
        first, written, selecting = scale.clone(), inputs.input_ids[:, :0], False

        def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            nonlocal written, selecting
            ids = kwargs["input_ids"]
            if selecting or ids.shape[1] > 1:
                return
            if len(ids) != len(scale):
                raise ValueError("reselect=true cannot follow beams; generate with one")
            written, selecting = torch.cat([written, ids], 1), True
            scale.fill_(1.0)
            scale.copy_(torch.where(self.select(model, inputs, written).heads, self.alpha, 1.0))
            selecting = False

        scale[:, list(self._chosen_layers(model))] = self.alpha  # so that every layer is watched
        with scaled_heads(model, scale), ExitStack() as stack:
            scale.copy_(first)
            stack.callback(model.hf.register_forward_pre_hook(before, with_kwargs=True).remove)
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


@torch.no_grad()
def alignment(model: LVLM, inputs: Inputs, alpha: float = 2.0) -> Float[Tensor, "2 batch layer head"]:
    """Proposition 1, measured at the last prompt position: `cos(Z, Z_h)` before and after head h alone is scaled.

    `Z` is the residual stream after attention as the MLP's norm gives it, `Z_h` what the norm gives for head h's
    contribution alone.
    """
    found = read(model, inputs, ["resid_pre", "attn_out", "z"], positions=inputs.last[:, None])
    cosines = []
    for layer in range(model.n_layers):
        norm = model.part(layer, model.family.mlp_norm)
        stream = (found["resid_pre"][:, layer, 0] + found["attn_out"][:, layer, 0])[:, None]
        alone = head_results(model, found["z"][:, layer, 0], layer)
        both = [norm(stream + (factor - 1) * alone) for factor in (1.0, alpha)]
        cosines.append(torch.stack([torch.cosine_similarity(z, norm(alone), dim=-1).float() for z in both]))
    return torch.stack(cosines, 2)
