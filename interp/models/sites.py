"""Sites: the places inside a decoder that can be read and edited, by one vocabulary, in one traced pass.

In execution order: `resid_pre` (the residual stream into a layer), `q`, `k`, `v` (as the attention kernel receives
them), `scores` (scaled, masked), `pattern` (attention probabilities), `z` (head outputs before the output
projection), `attn_out`, `mlp_out` (what each adds to the residual stream), `resid_post`, and the `logits`.
TransformerLens' names, such as `blocks.3.attn.hook_z`, are accepted: `blocks.3...` is layer 3 alone.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.inputs import Inputs
from interp.models.kernels import AttentionCall, watched
from interp.models.lvlm import LVLM

IN_KERNEL = ("attention", "q", "k", "v", "scores", "pattern")
SITES = ("resid_pre", *IN_KERNEL, "z", "attn_out", "mlp_out", "resid_post", "logits")
ALIASES = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}

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


class Site(NamedTuple):
    """A place by its name in `SITES`; `layer` None means every layer."""

    name: str
    layer: int | None

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Read `z`, or TransformerLens' `blocks.3.attn.hook_z`; ValueError names what there is."""
        if name in SITES:
            return cls(name, None)
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None or match[2] not in (*ALIASES, *SITES[:-1]):
            raise ValueError(
                f"unknown site {name!r}; expected one of {', '.join(SITES)}, "
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
        if site.name in IN_KERNEL and model.remote:
            raise ValueError(f"the site {site.name!r} lies inside a kernel, which a remote model does not show")
        everywhere = [-1] if site.name == "logits" else range(model.n_layers)
        for layer in everywhere if site.layer is None else [site.layer]:
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


def run_with_edits(
    model: LVLM, inputs: Inputs, edits: Mapping[str, SiteEdit], keep: int | None = 1
) -> Float[Tensor, "batch keep vocabulary"]:
    """Run one forward pass and call each edit with the values at its site, in execution order, to be changed or left.

    A value is `[batch, token, d_model]` for residual streams and what is added to them, `[batch, token, head, d_head]`
    for `z` and `q`, `k`, `v` (`k` and `v`: key-value heads), `[batch, head, query, key]` for `scores` and `pattern`
    (computed from queries and keys whatever the backend), an `AttentionCall`, to be read only, for `attention`.
    Returns the logits of the last `keep` positions (None: of all).
    """
    return _run(model, inputs, edits.items(), keep, {})


def _run(
    model: LVLM, inputs: Inputs, edits: Iterable[tuple[str, SiteEdit]], keep: int | None, found: dict[str, Any]
) -> Tensor:
    """One traced pass; `found` is what the edits fill, named here so that a remote pass sends it back."""
    one, family, root = _Pass(model, inputs, edits), model.family, model.traced
    stream, heads = (model.d_model,), (model.n_heads, model.d_head)
    with (
        model.in_use(),
        watched(model.decoder_configs, one.watches) if one.watches else nullcontext(),
        torch.no_grad(),
        root.trace(**inputs.kwargs(), use_cache=False, logits_to_keep=keep or 0, **model.trace_options),
    ):
        for layer in range(model.n_layers):
            block = model.layer(layer, root)
            one.at_module("resid_pre", layer, block, "input", stream)
            one.at_module("z", layer, model.part(layer, family.out_proj, root), "input", heads)
            one.at_module("attn_out", layer, model.part(layer, family.attention_out, root), "output", stream)
            one.at_module("mlp_out", layer, model.part(layer, family.mlp_out, root), "output", stream)
            one.at_module("resid_post", layer, block, "output", stream)
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

    def keep(name: str, layer: int, value: Any) -> None:
        site = Site.parse(name).name
        if isinstance(value, AttentionCall):
            call = value if positions is None else value.at(positions.to(value.query.device))
            value = call.scores() if site == "scores" else call.pattern()
        elif positions is not None:
            value = value[torch.arange(len(value), device=value.device)[:, None], positions.to(value.device)]
        kept = value if reduce is None else reduce(name, layer, value)
        if kept is not None:
            found[name].append(kept.to(model.device, copy=kept is value and positions is None))

    # scores and probabilities are computed for the chosen queries only, hence from the kernel's call
    edits = [(_call_of(name), partial(keep, name)) for name in names]
    _run(model, inputs, edits, None if "logits" in names else 1, found)
    return {
        name: torch.stack(values, 1) if Site.parse(name).layer is None and name != "logits" else values[0]
        for name, values in found.items()
        if values
    }


def _call_of(name: str) -> str:
    """Where to read a site: scores and probabilities from the call of the kernel."""
    site = Site.parse(name)
    if site.name not in ("scores", "pattern"):
        return name
    return "attention" if site.layer is None else f"blocks.{site.layer}.attention"
