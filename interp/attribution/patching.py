"""Activation patching between two inputs: what is put from one run into another, and how much of its effect comes back.

Vig et al., "Investigating Gender Bias in Language Models Using Causal Mediation Analysis", NeurIPS 2020; Meng et al.,
ROME, NeurIPS 2022; conventions as in Heimersheim and Nanda, arXiv 2404.15255.  Two inputs differ in one thing (another
picture, no picture, another word).  A place's value from `source` is put into the run on `target`: an effect of 0
leaves the target's answer as it was, 1 brings that of the source.  `first_order` gives the same for all places from one
backward pass (attribution patching, Nanda, 2023).

Positions are counted from the end, -1 the last, so that prompts of different lengths can be compared where they agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import LVLM, Inputs, differentiable, read, run_with_edits
from interp.models.sites import Site

Metric = Callable[[Float[Tensor, "batch vocabulary"]], Float[Tensor, " batch"]]
"""What is asked of the logits at the last position: a logit difference, say."""
Over = Literal["layer", "head", "position"]
WITH_HEADS = ("z", "q")
WHOLE = ("resid_pre", "attn_out", "mlp_post", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Patching:
    """Effects `[batch, layer, column]`: columns are heads, positions (`columns` names them), or one for the layer.

    `effect` is `(patched - target) / (source - target)`, nan in rows where the two do not differ; `target` and `source`
    are the metric without patching.
    """

    site: str
    over: Over
    columns: tuple[int, ...]
    effect: Float[Tensor, "batch layer column"]
    target: Float[Tensor, " batch"]
    source: Float[Tensor, " batch"]


def logit_difference(this: int, other: int) -> Metric:
    """The logit of one token less that of another."""
    return lambda logits: logits[:, this] - logits[:, other]


def _checked(target: Inputs, source: Inputs, site: str, over: Over, positions: Sequence[int] | None) -> list[int]:
    """The positions that are patched, from the end."""
    if Site.parse(site) != (site, None) or site not in (*WITH_HEADS, *WHOLE):
        raise ValueError(f"patching puts {', '.join((*WITH_HEADS, *WHOLE))} into another run, got {site!r}")
    if over == "head" and site not in WITH_HEADS:
        raise ValueError(f"{site} has no heads; patch {' or '.join(WITH_HEADS)} over heads")
    lengths = {x.input_ids.shape[1] for x in (target, source)}
    if len(target.input_ids) != len(source.input_ids):
        raise ValueError(f"expected as many rows, got {len(target.input_ids)} and {len(source.input_ids)}")
    if positions is None:
        if len(lengths) > 1:
            raise ValueError(
                f"the inputs have {sorted(lengths)} tokens: name the positions that correspond, from the end (-1, ...)"
            )
        return list(range(-lengths.pop(), 0))
    chosen = list(positions)
    if not chosen or len(set(chosen)) < len(chosen) or any(not -min(lengths) <= p < 0 for p in chosen):
        raise ValueError(f"positions are different numbers from -{min(lengths)} to -1, got {chosen}")
    return chosen


@torch.no_grad()
def patch(
    model: LVLM,
    target: Inputs,
    source: Inputs,
    metric: Metric,
    *,
    site: str = "z",
    over: Over = "head",
    positions: Sequence[int] | None = None,
) -> Patching:
    """Put each layer's, head's or position's value of `source` into the run on `target`, one place a forward pass.

    `over` says what a place is: a `layer` at all `positions`, a `head` at all of them, or one `position` in a layer.
    Raises ValueError if the inputs do not correspond.
    """
    chosen = _checked(target, source, site, over, positions)
    where = torch.tensor(chosen, device=model.device)
    rows = torch.arange(len(source.input_ids), device=model.device)[:, None]
    donor = read(model, source, site, positions=(source.input_ids.shape[1] + where).expand(len(rows), -1))[site]
    ends = [metric(run_with_edits(model, one, {})[:, -1].float()) for one in (target, source)]
    columns = {"layer": [0], "head": list(range(model.n_heads)), "position": list(range(len(chosen)))}[over]
    at = target.input_ids.shape[1] + where

    def patched(layer: int, column: int) -> Tensor:
        def edit(_: int, value: Tensor) -> Tensor:
            value = value.clone()
            if over == "head":
                value[rows, at, column] = donor[:, layer, :, column].to(value)
            elif over == "position":
                value[:, at[column]] = donor[:, layer, column].to(value)
            else:
                value[rows, at] = donor[:, layer].to(value)
            return value

        return metric(run_with_edits(model, target, {f"blocks.{layer}.{site}": edit})[:, -1].float())

    found = [torch.stack([patched(layer, c) for c in columns], -1) for layer in range(model.n_layers)]
    named = tuple(chosen) if over == "position" else tuple(columns)
    return Patching(site, over, named, _share(torch.stack(found, 1), *ends), *ends)


def first_order(
    model: LVLM,
    target: Inputs,
    source: Inputs,
    metric: Metric,
    *,
    site: str = "z",
    over: Over = "head",
    positions: Sequence[int] | None = None,
) -> Patching:
    """The same to first order: the slope of the metric at the target times the difference that patching makes."""
    chosen = _checked(target, source, site, over, positions)
    where = torch.tensor(chosen, device=model.device)
    n = len(source.input_ids)
    donor = read(model, source, site, positions=(source.input_ids.shape[1] + where).expand(n, -1))[site]
    graph = differentiable(model, target, site)
    answer = metric(graph.logits[:, -1].float())
    slope = graph.slopes(answer.sum())[site][:, :, where]
    step = slope * (donor - graph.values[site][:, :, where])  # [batch, layer, position, (head,) d]
    kept = {"layer": (), "head": (3,), "position": (2,)}[over]
    effect = step.sum([d for d in range(2, step.ndim) if d not in kept]).reshape(n, model.n_layers, -1)
    ends = answer.detach(), metric(run_with_edits(model, source, {})[:, -1].float())
    columns = tuple(chosen) if over == "position" else tuple(range(effect.shape[-1]))
    return Patching(site, over, columns, _share(ends[0][:, None, None] + effect, *ends), *ends)


def _share(patched: Tensor, target: Tensor, source: Tensor) -> Tensor:
    whole = (source - target)[:, None, None]
    return torch.where(whole == 0, torch.nan, (patched - target[:, None, None]) / whole)
