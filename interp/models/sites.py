"""Sites: the places inside a decoder that can be read and edited, by one vocabulary, in one traced pass.

In execution order: `resid_pre` (the residual stream into a layer), `q`, `k`, `v` (as the attention kernel receives
them), `scores` (scaled, masked), `pattern` (attention probabilities), `z` (head outputs before the output
projection), `result` (what each head adds to the residual stream; computed from `z`, to be read only), `attn_out`
(what attention adds), `mlp_post` (the MLP's neurons, gated where it gates), `mlp_out` (what the MLP adds),
`resid_post`; after the layers `final_norm` and the `logits`.  TransformerLens' names, such as `blocks.3.attn.hook_z`,
are accepted: `blocks.3...` is layer 3 alone; `hook_embed` is what enters layer 0, pictures merged in.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.inputs import Inputs
from interp.models.kernels import AttentionCall, watched
from interp.models.lvlm import LVLM

IN_KERNEL = ("attention", "q", "k", "v", "scores", "pattern")
AT_THE_END = ("final_norm", "logits")
"""Sites after the layers: they have no layer, their edits are called with layer -1."""
SITES = ("resid_pre", *IN_KERNEL, "z", "attn_out", "mlp_post", "mlp_out", "resid_post", *AT_THE_END)
COMPUTED = "result"
"""A site that is computed from `z`: it can be read only."""
ALIASES = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "attn.hook_result": "result",
    "hook_attn_out": "attn_out",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
WHOLE = {
    "hook_embed": ("resid_pre", 0),
    "ln_final": ("final_norm", None),
    "ln_final.hook_normalized": ("final_norm", None),
}
"""TransformerLens' names outside its blocks."""

SiteEdit = Callable[[int, Any], Tensor | None]
"""Called with a layer and the value at a site; a returned tensor of the same shape replaces it."""


class Head(NamedTuple):
    """A head of the decoder, both numbers from 0; its label is `L12H5`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, label: str) -> "Head":
        """Read a label; ValueError if it is none."""
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", label.strip())
        if match is None:
            raise ValueError(f"a head is written like L12H5 (layer 12, head 5, from 0), got {label!r}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def parse_list(cls, heads: "Heads") -> "tuple[Head, ...]":
        """Read `L5H7,L4H2`, one head, or a sequence of heads, tuples and labels, without repeats; ValueError if none.

        Inside the notation of a method, where commas part methods, `+` may join labels.
        """
        if isinstance(heads, str):
            listed: list[Any] = [label for label in re.split(r"[,+]", heads) if label.strip()]
        elif isinstance(heads, tuple) and len(heads) == 2 and all(isinstance(x, int) for x in heads):
            listed = [heads]
        else:
            listed = list(heads)
        found = [cls.parse(head) if isinstance(head, str) else cls(*map(int, head)) for head in listed]
        if not found or min(map(min, found)) < 0:
            raise ValueError(f"heads are written like L5H7,L4H2 (layer and head, from 0), got {heads!r}")
        return tuple(dict.fromkeys(found))

    @classmethod
    def of_model(cls, heads: "Heads | None", model: LVLM) -> "tuple[Head, ...]":
        """The heads of a list (None: all), refused with ValueError where the model has no such head."""
        every = tuple(cls(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))
        chosen = every if heads is None else cls.parse_list(heads)
        wrong = [str(head) for head in chosen if head not in every]
        if wrong:
            raise ValueError(f"this model has heads L0H0 to {every[-1]}, got {', '.join(wrong)}")
        return chosen


Heads = str | tuple[int, int] | Sequence[Head | tuple[int, int] | str]
"""Heads as users write them: `L5H7,L4H2`, one `(layer, head)`, or a sequence of labels and pairs."""


class Site(NamedTuple):
    """A place by its name in `SITES`; `layer` None means every layer, and for the last two there is none."""

    name: str
    layer: int | None

    @property
    def in_every_layer(self) -> bool:
        """Whether values of all layers are meant."""
        return self.layer is None and self.name not in AT_THE_END

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Read `z`, or TransformerLens' `blocks.3.attn.hook_z`; ValueError names what there is."""
        if name in (*SITES, COMPUTED):
            return cls(name, None)
        if name in WHOLE:
            return cls(*WHOLE[name])
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None or match[2] not in (*ALIASES, COMPUTED, *SITES[: -len(AT_THE_END)]):
            raise ValueError(
                f"unknown site {name!r}; expected one of {', '.join((*SITES, COMPUTED, *WHOLE))}, "
                f"or blocks.LAYER. followed by one of {', '.join(ALIASES)}"
            )
        return cls(ALIASES.get(match[2], match[2]), int(match[1]))


def _places(model: LVLM, edits: Iterable[tuple[str, SiteEdit]]) -> dict[tuple[str, int], list[SiteEdit]]:
    """The edits of each site and layer, in the order given."""
    places: dict[tuple[str, int], list[SiteEdit]] = {}
    for name, edit in edits:
        site = Site.parse(name)
        if site.layer is not None and site.layer >= model.n_layers:
            raise ValueError(f"{name!r}: this model has layers 0 to {model.n_layers - 1}")
        if site.name == COMPUTED:
            raise ValueError("result is computed from z and can only be read; edit z")
        if site.name in IN_KERNEL and model.remote:
            raise ValueError(f"the site {site.name!r} lies inside a kernel, which a remote model does not show")
        here = [site.layer if site.layer is not None else -1]
        for layer in range(model.n_layers) if site.in_every_layer else here:
            places.setdefault((site.name, layer), []).append(edit)
    return places


class _Pass:
    """The edits of one forward pass."""

    def __init__(self, model: LVLM, inputs: Inputs, edits: Iterable[tuple[str, SiteEdit]]) -> None:
        self.places = _places(model, edits)
        self.shape = inputs.input_ids.shape
        self.watches: dict[Any, Any] = {
            model.part(layer, model.family.attention): partial(self.in_kernel, layer)
            for layer in range(model.n_layers)
            if any((name, layer) in self.places for name in IN_KERNEL)
        }

    def show(self, site: str, layer: int, value: Any) -> Any:
        """The value after all edits of a place, None if none of them changed it."""
        edited = None
        for edit in self.places.get((site, layer), ()):
            answer = edit(layer, value)
            if answer is not None:
                value = edited = answer
        return edited

    def at_module(self, site: str, layer: int, envoy: Any, end: str, d: tuple[int, ...]) -> None:
        """Show what goes into or comes out of a module as `[batch, token, *d]`, and put back what was edited."""
        if (site, layer) not in self.places:
            return
        value = getattr(envoy, end)
        first = value[0] if isinstance(value, tuple) else value
        edited = self.show(site, layer, first.view(*self.shape, *d))
        if edited is not None:
            if edited.numel() != first.numel():
                raise ValueError(
                    f"an edit of {site} in layer {layer} gave shape {tuple(edited.shape)}; expected the shape of "
                    f"what it was called with, {(*self.shape, *d)} (batch, token, ...)"
                )
            edited = edited.reshape(first.shape)
            setattr(envoy, end, (edited, *value[1:]) if isinstance(value, tuple) else edited)

    def in_kernel(self, layer: int, call: AttentionCall) -> tuple[AttentionCall, Tensor | None] | None:
        """Show what the attention kernel of a layer receives, then scores and probabilities."""
        self.show("attention", layer, call)
        before, pattern = call, None
        for name, part in (("q", "query"), ("k", "key"), ("v", "value")):
            edited = self.show(name, layer, getattr(call, part).transpose(1, 2))
            if edited is not None:
                call = replace(call, **{part: edited.transpose(1, 2)})
        if ("scores", layer) in self.places or ("pattern", layer) in self.places:
            scores = call.scores()
            edited = self.show("scores", layer, scores)
            probabilities = call.pattern(scores if edited is None else edited)
            pattern = self.show("pattern", layer, probabilities)
            if pattern is None and edited is not None:
                pattern = probabilities
        return None if call is before and pattern is None else (call, pattern)


def head_results(
    model: LVLM, z: Float[Tensor, "*batch head d_head"], layer: int
) -> Float[Tensor, "*batch head d_model"]:
    """What each head of a layer adds to the residual stream: its share of the output projection, without the bias."""
    project = model.out_proj(layer)
    alone = torch.zeros(*z.shape[:-2], model.n_heads, model.n_heads, model.d_head, dtype=z.dtype, device=z.device)
    heads = torch.arange(model.n_heads, device=z.device)
    alone[..., heads, heads, :] = z
    return project(alone.flatten(-2)) - project(torch.zeros_like(alone[..., :1, :, :]).flatten(-2))


def run_with_edits(
    model: LVLM, inputs: Inputs, edits: Mapping[str, SiteEdit], keep: int | None = 1
) -> Float[Tensor, "batch keep vocabulary"]:
    """Run one forward pass and call each edit with the values at its site, in execution order, to be changed or left.

    A value is `[batch, token, d_model]` for residual streams and what is added to them, `[batch, token, head, d_head]`
    for `z` and `q`, `k`, `v` (`k` and `v`: key-value heads), `[batch, token, neuron]` for `mlp_post`,
    `[batch, head, query, key]` for `scores` and `pattern` (computed from queries and keys whatever the backend), an
    `AttentionCall`, to be read only, for `attention`.
    Returns the logits of the last `keep` positions (None: of all).
    """
    return run_pass(model, inputs, edits.items(), keep, {})


def run_pass(
    model: LVLM,
    inputs: Inputs,
    edits: Iterable[tuple[str, SiteEdit]],
    keep: int | None,
    found: dict[str, Any],
    with_gradients: bool = False,
) -> Tensor:
    """One traced pass; `found` is what the edits fill, named here so that a remote pass sends it back."""
    one, family, root = _Pass(model, inputs, edits), model.family, model.traced
    stream, heads = (model.d_model,), (model.n_heads, model.d_head)
    with (
        model.in_use(),
        watched(model.decoder_configs, one.watches) if one.watches else nullcontext(),
        torch.set_grad_enabled(with_gradients),
        root.trace(**inputs.kwargs(), use_cache=False, logits_to_keep=keep or 0, **model.trace_options),
    ):
        for layer in range(model.n_layers):
            block = model.layer(layer, root)
            one.at_module("resid_pre", layer, block, "input", stream)
            one.at_module("z", layer, model.part(layer, family.out_proj, root), "input", heads)
            one.at_module("attn_out", layer, model.part(layer, family.attention_out, root), "output", stream)
            one.at_module("mlp_post", layer, model.part(layer, family.mlp_down, root), "input", (-1,))
            one.at_module("mlp_out", layer, model.part(layer, family.mlp_out, root), "output", stream)
            one.at_module("resid_post", layer, block, "output", stream)
        one.at_module("final_norm", -1, attrgetter(family.final_norm)(root), "output", stream)
        value = root.output.logits
        edited = one.show("logits", -1, value)
        logits = model.save(value if edited is None else edited)
        model.save(found)
    return logits


Reduce = Callable[[str, int, Tensor], Tensor | None]
"""Called with site, layer and value; what it returns is kept in the value's place (None: nothing)."""


def read(
    model: LVLM,
    inputs: Inputs,
    sites: str | Sequence[str],
    *,
    positions: Int[Tensor, "batch position"] | None = None,
    reduce: Reduce | None = None,
) -> dict[str, Tensor]:
    """Read any sites in one traced pass: `{site: values}`, the layers stacked as the second axis.

    `z` gives `[batch, layer, token, head, d_head]`, `pattern` `[batch, layer, head, query, key]`, `resid_post`
    `[batch, layer, token, d_model]`, `logits` `[batch, token, vocabulary]`; a name with a layer in it
    (`blocks.3.attn.hook_z`) has no layer axis.  `positions` picks tokens of each row (for scores and probabilities:
    queries) before anything is kept; `reduce` turns each layer's value into what is kept, so that memory need not
    grow with the layers.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def reduced(name: str, layer: int, value: Tensor, copied: bool) -> None:
        kept = value if reduce is None else reduce(name, layer, value)
        if kept is not None:
            found[name].append(kept.to(model.device, copy=kept is value and not copied))

    def keep(name: str, layer: int, value: Any) -> None:
        site = Site.parse(name).name
        if isinstance(value, AttentionCall):
            call = value if positions is None else value.at(positions.to(value.query.device))
            value = call.scores() if site == "scores" else call.pattern()
        elif positions is not None:
            value = value[torch.arange(len(value), device=value.device)[:, None], positions.to(value.device)]
        if site == COMPUTED:  # after the pass: inside, calling a module would run its trace
            found[name].append(value.clone())
        else:
            reduced(name, layer, value, positions is not None)

    # scores and probabilities are computed for the chosen queries only, hence from the kernel's call
    edits = [(_source_of(name), partial(keep, name)) for name in names]
    run_pass(model, inputs, edits, None if "logits" in names else 1, found)
    for name in (n for n in names if Site.parse(n).name == COMPUTED):
        layers, found[name] = found[name], []
        only = Site.parse(name).layer
        for layer, z in enumerate(layers) if only is None else ((only, layers[0]),):
            with torch.no_grad():
                reduced(name, layer, head_results(model, z, layer), True)
    return {
        name: torch.stack(values, 1) if Site.parse(name).in_every_layer else values[0]
        for name, values in found.items()
        if values
    }


def _source_of(name: str) -> str:
    """Where to read a site: scores and probabilities from the call of the kernel, what heads add from their outputs."""
    site = Site.parse(name)
    source = {"scores": "attention", "pattern": "attention", COMPUTED: "z"}.get(site.name)
    if source is None:
        return name
    return source if site.layer is None else f"blocks.{site.layer}.{source}"
