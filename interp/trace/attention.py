"""Attention without its maps: statistics computed while the model runs, from queries and keys, block by block.

Works under any attention backend.  Memory holds one block of query rows of one layer at a time, never a whole map.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.metrics.attention import (
    KINDS,
    PADDING,
    Sparsity,
    SquaredSelection,
    entropy,
    mass_by_kind,
    saliency,
    sink_weights,
    sparsity,
    squared_selection,
)
from interp.models import LVLM, AttentionCall, Inputs
from interp.models.sites import SiteEdit, run_pass

GROUPS = ("prefill", "generated")
"""Queries are told apart: those of the prompt, and those of the generated tokens."""


def token_kinds(inputs: Inputs, n_generated: int = 0) -> Int[Tensor, "batch token"]:
    """What each token is, as an index of `KINDS`; padding is -1.  The last `n_generated` places are generated."""
    kinds = torch.full_like(inputs.input_ids, KINDS.index("prompt"))
    kinds[inputs.image_mask] = KINDS.index("image")
    kinds[:, kinds.shape[1] - n_generated :] = KINDS.index("generated")
    return kinds.masked_fill(inputs.attention_mask == 0, PADDING)


@dataclass(frozen=True)
class AttentionStatistics:
    """What was measured in one pass, by sample, layer and head; see `interp.metrics.attention` for each.

    `received_sum` is the attention each key received from all queries, `seen_by` the number of queries that could
    see it.  Sparsity is averaged over the queries of each of `GROUPS` (`nan` where there are none).
    """

    kinds: Int[Tensor, "batch token"]
    received_sum: Float[Tensor, "batch layer head token"]
    seen_by: Float[Tensor, "batch layer token"]
    mass: Float[Tensor, "batch layer head token kind"]
    entropy: Float[Tensor, "batch layer head token"]
    recall: Float[Tensor, "batch layer head group fraction"]
    share: Float[Tensor, "batch layer head group recall"]
    recall_rest: Float[Tensor, "batch layer head group fraction"]
    share_rest: Float[Tensor, "batch layer head group recall"]
    kept: Float[Tensor, "batch layer head group fraction kind"]
    squared: Float[Tensor, "batch layer head group selected 4"]

    @property
    def real(self) -> Bool[Tensor, "batch token"]:
        """Which tokens are no padding."""
        return self.kinds != PADDING

    @property
    def received(self) -> Float[Tensor, "batch layer head token"]:
        """`alpha_k`: the mean attention each token receives from the queries that can see it."""
        return self.received_sum / self.seen_by.clamp(min=1)[:, :, None]

    @property
    def image_mass(self) -> Float[Tensor, "batch layer head token"]:
        """How much of its attention each query pays to the image."""
        return self.mass[..., KINDS.index("image")]

    def sinks(self, eps: float = 0.3, min_queries: int = 8) -> Bool[Tensor, "batch layer head token"]:
        """Where a token receives more than `eps`, from at least `min_queries` queries: the last tokens have few."""
        seen = (self.seen_by >= min_queries)[:, :, None] & self.real[:, None, None]
        return (self.received > eps) & seen

    def saliency(self, heads: str = "last") -> Float[Tensor, "batch layer token"]:
        """VASparse's `P`, of each layer."""
        layers = range(self.mass.shape[1])
        return torch.stack([saliency(self.image_mass[:, layer], self.real, heads) for layer in layers], 1)

    def sink_weights(self) -> Float[Tensor, "batch layer head token"]:
        """VASparse's `w`, of each layer and head, after all queries."""
        layers = range(self.mass.shape[1])
        return torch.stack([sink_weights(self.received_sum[:, layer], self.real) for layer in layers], 1)


class _Layer:
    """Running sums of one layer."""

    def __init__(self, inputs: Inputs, kinds: Tensor, block: int, with_sparsity: bool) -> None:
        self.inputs, self.kinds, self.block, self.with_sparsity = inputs, kinds, block, with_sparsity

    def measure(self, call: AttentionCall) -> dict[str, Tensor]:
        """All statistics of one call of the kernel."""
        device = call.query.device
        kinds, real = self.kinds.to(device), self.inputs.attention_mask.to(device).bool()
        first = real.int().argmax(-1)
        generated = kinds == KINDS.index("generated")
        groups = torch.stack([real & ~generated, real & generated], 1)
        batch, heads, n = call.query.shape[:3]
        sums = {"received_sum": call.query.new_zeros(batch, heads, n, dtype=torch.float32)}
        sums["seen_by"] = call.query.new_zeros(batch, n, dtype=torch.float32)
        rows: dict[str, list[Tensor]] = {"mass": [], "entropy": []}
        curves: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for start in range(0, n, self.block):
            stop = min(start + self.block, n)
            part = call.block(start, stop)
            seen = part.key.shape[2]
            asks = real[:, start:stop]
            scores = part.scores()
            pattern = part.pattern(scores).float() * asks[:, None, :, None]
            visible = part.visible[:, 0].expand(batch, -1, -1) & asks[..., None] & real[:, None, :seen]
            sums["received_sum"][..., :seen] += pattern.sum(2)
            sums["seen_by"][:, :seen] += visible.sum(1)
            rows["mass"].append(mass_by_kind(pattern, kinds[:, :seen]))
            rows["entropy"].append(entropy(pattern))
            if self.with_sparsity:
                found = sparsity(pattern, visible.sum(-1).clamp(min=1), first.clamp(max=seen - 1), kinds[:, :seen])
                _add(curves, counts, found, groups[:, :, start:stop])
                _add(curves, counts, squared_selection(scores.float(), pattern), groups[:, :, start:stop])
        found = {name: torch.cat(parts, 2) for name, parts in rows.items()}
        means = {name: total / counts[name] for name, total in curves.items()}
        return {name: value.cpu() for name, value in (sums | found | means).items()}


def _add(
    curves: dict[str, Tensor], counts: dict[str, Tensor], found: Sparsity | SquaredSelection, groups: Tensor
) -> None:
    """Add the rows of each group to its sums; rows that are `nan` do not count."""
    for field in fields(found):
        value: Tensor = getattr(found, field.name)  # [batch, head, query, ...]
        counted = ~value.isnan()
        tail = "bgq,bhq...->bhg..."
        weights = groups.to(value)
        total = torch.einsum(tail, weights, value.nan_to_num(0))
        number = torch.einsum(tail, weights, counted.to(value))
        curves[field.name] = curves.get(field.name, 0) + total
        counts[field.name] = counts.get(field.name, 0) + number


def attention_statistics(
    model: LVLM,
    inputs: Inputs,
    n_generated: int = 0,
    *,
    with_sparsity: bool = True,
    block: int = 64,
    beside: Iterable[tuple[str, SiteEdit]] = (),
    keep: int | None = 1,
) -> AttentionStatistics:
    """Measure attention in one traced pass.

    `inputs` may have been extended by captions (`Inputs.extended`); `n_generated` says by how many places: a
    teacher-forced row is what the decode step of that token computes.  `block` is how many queries are held at once.
    `with_sparsity=False` leaves out the sparsity curves, the only part that sorts.  `beside` are sites that are watched
    in the same pass (`run_with_edits`), so that several measurements cost one; `keep` is how many logits they see.
    """
    kinds = token_kinds(inputs, n_generated)
    layers: list[dict[str, Tensor]] = []

    def watch(_: int, call: AttentionCall) -> None:
        layers.append(_Layer(inputs, kinds, block, with_sparsity).measure(call))

    run_pass(model, inputs, [("attention", watch), *beside], keep, {})
    nothing = torch.empty(len(kinds), model.n_heads, len(GROUPS), 0)
    for layer in layers if not with_sparsity else ():
        layer |= dict.fromkeys(("recall", "share", "recall_rest", "share_rest"), nothing)
        layer["kept"] = nothing[..., None].expand(*nothing.shape, len(KINDS))
        layer["squared"] = nothing[..., None].expand(*nothing.shape, 4)
    measured = {
        field.name: torch.stack([layer[field.name] for layer in layers], 1)
        for field in fields(AttentionStatistics)
        if field.name != "kinds"
    }
    return AttentionStatistics(kinds.cpu(), **measured)
