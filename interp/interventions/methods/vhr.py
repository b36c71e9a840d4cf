"""Vision-aware head reinforcement (VHR): amplify the heads whose output the image changes most.

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, eqs. 6 and 7, algorithm 1.

Symbols: `VHD[l,i]`, `TA[l,i]` and `H_l` as in `interp.metrics.vhd`; `alpha` keeps its name.  The paper leaves open, and
this file makes a parameter: the standard deviation (`deviation`, default sample) and whether the image-free stream is
reinforced too (`reinforce_image_free`, default yes, so that both streams differ by the image only).  Layers default to
the paper's for the model's family, scaled to its depth (`PRESETS`).  `reselect` is a variant, not the paper's: sets are
chosen anew at every step, while the cache keeps what earlier sets wrote.  The paper's ablation "same heads for every
image" is `heads=L1H1+L5H2`, a set found before (by `interp causal`, say).
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.base import Layers, Method, Seed, Within
from interp.interventions.primitives.head_scaling import scaled_heads
from interp.interventions.primitives.head_sets import head_set
from interp.interventions.primitives.packed_prompt import PackedPrompt
from interp.metrics.vhd import head_divergence, vision_aware_heads
from interp.models import LVLM, GenerateOptions, Head, HeadSelection, Inputs, image_free, paired, run_with_edits
from interp.models.image_free import ImageFree
from interp.trace.divergence import streams

Choice = Literal["vision-aware", "bottom", "random", "all"]
Deviation = Literal["sample", "population"]

PRESETS = {"llava": (True, 14 / 32), "instructblip": (False, 18 / 32), "second": (True, 0.0), "all": (True, 1.0)}
"""Whether the second layer is reinforced, and which share of the last ones: LLaVA-1.5 and LLaVA-NeXT, InstructBLIP."""


def paper_layers(n_layers: int, preset: str = "llava") -> tuple[int, ...]:
    """Layers by a name in `PRESETS`, or the last ones by a share such as `last44%`, scaled to `n_layers`."""
    share = re.fullmatch(r"last(\d+(?:\.\d+)?)%", preset)
    if (share is None and preset not in PRESETS) or (share is not None and not 0 < float(share[1]) <= 100):
        raise ValueError(f"preset is one of {', '.join(PRESETS)} or a share such as last44%, got {preset!r}")
    second, last = PRESETS[preset] if share is None else (False, float(share[1]) / 100)
    n_last = min(round(n_layers * last), n_layers)
    return tuple(sorted({*([min(1, n_layers - 1)] if second else []), *range(n_layers - n_last, n_layers)}))


def as_many(choice: Choice, vhd: Float[Tensor, "batch head"], chosen: Bool[Tensor, "batch head"], seed: int) -> Tensor:
    """As many heads of a layer as were chosen, taken otherwise: those of lowest VHD, or the same random ones of all.

    `all` takes every head, so that the layer grows louder and no head gains on another.
    """
    if choice == "vision-aware":
        return chosen
    if choice == "all":
        return torch.ones_like(chosen)
    if choice == "bottom":
        order = vhd.argsort(-1)
    else:
        shuffle = torch.Generator().manual_seed(seed)
        order = torch.randperm(vhd.shape[-1], generator=shuffle).to(vhd.device).expand_as(vhd)
    return order.argsort(-1) < chosen.sum(-1, keepdim=True)


@dataclass(frozen=True)
class VHR(Method):
    """Heads that the picture moves are amplified: `with VHR(alpha=2.0)(model): model.generate(...)`.

    `choice="bottom"` and `choice="random"` are its controls: in each layer as many heads as VHR would take,
    the ones of lowest VHD, or a set drawn from `seed` and kept for all images; `choice="all"` takes all heads of its
    layers.  `others` is the factor of those heads of its layers that are not chosen: below 1 it gives back what `alpha`
    adds, so that the balance between heads moves and the loudness of the layer does not.  `alpha=1` changes nothing.

    `heads`: these for every image, as labels joined by +, in place of any choice.
    `layers` are numbers, else `preset` says which (`auto`: the paper's for the family); `image_free` how the picture is
    taken away; `outliers=False` leaves out eq. 6; `reselect` chooses anew at every step.
    """

    alpha: Annotated[float, Within(0, 1000, above=True)] = 2.0
    layers: Layers = None
    preset: str = "auto"
    choice: Choice = "vision-aware"
    deviation: Deviation = "sample"
    outliers: bool = True
    reinforce_image_free: bool = True
    image_free: ImageFree = "remove"
    reselect: bool = False
    seed: Seed = 0
    others: Annotated[float, Within(0, 1000)] = 1.0
    heads: str = ""

    citation: ClassVar = "He et al., ACL 2025, arXiv 2412.13949"
    cost: ClassVar = "the prompt without its picture, read beside it"
    off: ClassVar = "alpha=1"
    passes: ClassVar = {
        "main": "the text is written by the reinforced model",
        "contrast": "a contrast is between two inputs, not between two models",
        "choice": "another method that chooses heads chooses them for the reinforced model",
        "source": "what an edit puts in place comes from the reinforced model",
    }
    needs_vision: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset != "auto":
            paper_layers(32, self.preset)
        if self.layers == ():
            raise ValueError("layers of VHR names none: nothing would be reinforced; alpha=1 switches it off")
        if self.choice == "all" and self.others != 1:
            raise ValueError(f"choice=all of VHR leaves no others; leave out others, got {self.others}")
        choosing = self.layers, self.preset, self.choice, self.reselect
        if self.heads and choosing != (None, "auto", "vision-aware", False):
            raise ValueError("heads of VHR are the same for every image; leave out layers, preset, choice and reselect")

    def check(self, model: LVLM) -> None:
        """ValueError if a layer is not there, or nothing would be reinforced."""
        super().check(model)
        self._fixed(model)
        if not self.chosen_layers(model):
            raise ValueError(f"preset {self.preset} of VHR names no layer of the {model.n_layers} of this model")
        if self.reselect and model.family.needs_pixels:  # they generate inside their language model, without token ids
            raise ValueError(f"reselect=true cannot follow what a {model.family.name} model generates")

    def chosen_layers(self, model: LVLM) -> tuple[int, ...]:
        """The layers of this model that are reinforced."""
        if self.heads:
            return tuple(sorted({head.layer for head in self._fixed(model)}))
        family = model.family.name if model.family.name in PRESETS else "llava"
        preset = family if self.preset == "auto" else self.preset
        return paper_layers(model.n_layers, preset) if self.layers is None else self.layers

    def factors(self, model: LVLM, heads: Bool[Tensor, "batch layer head"]) -> Float[Tensor, "batch layer head"]:
        """By how much each head is multiplied when these are the chosen ones."""
        layers = torch.zeros(model.n_layers, 1, dtype=torch.bool, device=heads.device)
        layers[list(self.chosen_layers(model))] = True
        return torch.where(heads, self.alpha, torch.where(layers, self.others, 1.0))

    def _fixed(self, model: LVLM) -> tuple[Head, ...]:
        """The heads that are given for every image."""
        return head_set(self.heads, (model.n_layers, model.n_heads)) if self.heads else ()

    def select(self, model: LVLM, inputs: Inputs, written: Int[Tensor, "batch token"] | None = None) -> HeadSelection:
        """Choose the heads, layer by layer in one traced pass: each layer sees the earlier ones reinforced.

        At the last position of the prompts, or of the tokens `written` after them.
        """
        self.check(model)
        found = self._nothing_yet(model, inputs)

        def reinforce(layer: int, z: Tensor) -> Tensor | None:
            factors = self._choose(layer, *streams(z[:, -1]), model, found)
            return None if factors is None else z * factors.flatten(0, 1)[:, None, :, None].to(z)

        both = paired(model, inputs, self.image_free, None if written is None else list(written))
        with model.passing("choice", owner=self):
            run_with_edits(model, both, {"z": reinforce})
        return found

    def _nothing_yet(self, model: LVLM, inputs: Inputs) -> HeadSelection:
        heads = torch.zeros(len(inputs.input_ids), model.n_layers, model.n_heads, dtype=torch.bool, device=model.device)
        return HeadSelection(heads, torch.zeros(heads.shape, device=model.device))

    def _choose(
        self,
        layer: int,
        with_image: Float[Tensor, "batch head d_head"],
        without: Float[Tensor, "batch head d_head"],
        model: LVLM,
        found: HeadSelection,
    ) -> Float[Tensor, "batch 2 head"] | None:
        """Choose a layer's heads from their outputs in both streams; the factors of both, None if it has none."""
        found.vhd[:, layer] = head_divergence(with_image, without)
        if layer not in self.chosen_layers(model):
            return None
        vhd, text_energy = found.vhd[:, layer], without.float().square().sum(-1).to(found.vhd.device)
        chosen = vision_aware_heads(vhd, text_energy, self.deviation, self.outliers)
        found.heads[:, layer] = as_many(self.choice, vhd, chosen, self.seed * 1_000_003 + layer)
        if self.heads:
            found.heads[:, layer] = False
            found.heads[:, layer, [head.head for head in self._fixed(model) if head.layer == layer]] = True
        factor = torch.where(found.heads[:, layer], self.alpha, self.others)
        return torch.stack([factor, factor if self.reinforce_image_free else torch.ones_like(factor)], 1)

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Choose heads for the batch and amplify them."""
        acts = (self.alpha, self.others) != (1, 1)  # else nothing may change, not by rounding either
        alone = not (self.reselect or model.family.needs_pixels or len(model.methods) > 1)
        if acts and alone and self.image_free == "remove":
            return self._choosing_at_the_prompt(model, inputs)
        return self._choosing_before(model, inputs)

    @contextmanager
    def _choosing_before(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Amplify by what a pass of its own chooses."""
        selection = self.select(model, inputs)
        scale = self.factors(model, selection.heads)
        with self._choosing_anew(model, inputs, scale) if self.reselect else scaled_heads(model, scale, self.passes):
            yield GenerateOptions(heads=selection, needs_cache=self.reselect)

    @contextmanager
    def _choosing_at_the_prompt(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Amplify by what is chosen in generate's first pass, which reads the image-free prompt too."""
        found = self._nothing_yet(model, inputs)
        scale = torch.ones(found.vhd.shape, device=model.device)
        packed = PackedPrompt(model, inputs, image_free(model, inputs))

        def first() -> None:
            selection = self.select(model, inputs)
            found.heads.copy_(selection.heads)
            found.vhd.copy_(selection.vhd)
            known()

        def known() -> None:
            scale.copy_(self.factors(model, found.heads))

        def hook(layer: int) -> Any:
            def before(_: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
                if not packed.reading:
                    return None
                z = model.by_head(args[0])
                factors = self._choose(layer, z[:, -1], z[:, packed.n - 1], model, found)
                if factors is None:
                    return None
                factors = factors.to(z)[..., None]
                image_free, prompt = z.split([packed.n, z.shape[1] - packed.n], 1)
                return (torch.cat([image_free * factors[:, 1:], prompt * factors[:, :1]], 1).flatten(-2),)

            return before

        with ExitStack() as stack:
            for layer in range(model.n_layers):
                stack.callback(model.out_proj(layer).register_forward_pre_hook(hook(layer)).remove)
            scale[:, list(self.chosen_layers(model))] = 2.0  # so that these layers are watched
            stack.enter_context(scaled_heads(model, scale, self.passes))
            scale.fill_(1.0)
            stack.enter_context(packed.open(first, known))
            yield GenerateOptions(heads=found)

    @contextmanager
    def _choosing_anew(self, model: LVLM, inputs: Inputs, scale: Tensor) -> Iterator[None]:
        """Amplify by `scale`, which is filled anew before each token that the text goes on with."""
        first, written = scale.clone(), inputs.input_ids[:, :0]

        def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            nonlocal written
            ids, now = kwargs["input_ids"], model.now
            if now.name != "main" or not now.goes_on(ids.shape[1]):
                return
            if now.prompts is not None or len(ids) != len(scale):
                raise ValueError("reselect=true cannot follow beams; generate with one")
            written = torch.cat([written, ids], 1)
            scale.fill_(1.0)  # the pass that chooses is of the model as it is
            scale.copy_(self.factors(model, self.select(model, inputs, written).heads))

        scale[:, list(self.chosen_layers(model))] = 2.0  # so that every layer is watched
        with scaled_heads(model, scale, self.passes), ExitStack() as stack:
            scale.copy_(first)
            stack.callback(model.hf.register_forward_pre_hook(before, with_kwargs=True).remove)
            yield
