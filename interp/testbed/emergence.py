"""When a small decoder grows an attention sink: `Sink_k`, loss and norms at the steps whose weights were kept.

Gu et al. (arXiv 2410.10781): `Sink_k^eps` of section 3, read from the kernel's own maps (64 tokens: they are small).
Where a kernel's rows do not sum to one, as with `sigmoid`, they are normalised first, as the paper does for its table.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.folder import write_text
from interp.testbed.batches import Batch
from interp.testbed.decoders import DecoderRecipe, TextSampler, at_step, blocks, prepare
from interp.testbed.sink_kernels import PARAMETER

FIRST = 8
"""Keys whose `Sink_k` is told."""
LEAST = 8
"""Queries that must see a key before it counts as a sink: the last tokens have few."""


@dataclass(frozen=True)
class Emergence:
    """A decoder at a step: held-out loss in nats a token with its standard error over sequences, sinks, norms.

    `sink[k - 1]` is `Sink_k` in percent, `sink_any` the same for the best key of a head, `received` what the first
    token receives on average, `bias` what a kernel's bias takes, and `sink_bias` the percent of heads in which that is
    more than eps.  `hidden` (the largest layer's), `key`, `value`: the first token's norm over the median of the
    others.  `row_sum` is the mean sum of a row before normalising.
    """

    step: int
    loss: float
    loss_error: float
    sink: tuple[float, ...]
    sink_any: float
    received: float
    bias: float
    sink_bias: float
    hidden: float
    key: float
    value: float
    row_sum: float


def _ratio(norm: Float[Tensor, "*other token"]) -> Tensor:
    """The first token's over the median of the others."""
    return norm[..., 0] / norm[..., 1:].median(-1).values.clamp(min=1e-9)


@torch.no_grad()
def examine(model: Any, batch: Batch, recipe: DecoderRecipe, step: int, eps: float = 0.3) -> Emergence:
    """Everything of a decoder on sequences, as its recipe shows them; `eps`: a sink receives more."""
    norms: dict[str, list[Tensor]] = {"k_proj": [], "v_proj": []}
    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(
            lambda _, __, out, name=name: norms[name].append(out.unflatten(-1, (recipe.heads, -1)).norm(dim=-1))
        )
        for layer in model.model.layers
        for name in norms
    ]
    out = model(
        input_ids=batch.text,
        attention_mask=batch.visible,
        position_ids=batch.position,
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
    )
    for hook in hooks:
        hook.remove()
    maps = torch.stack(out.attentions, 1)  # [batch, layer, head, query, key]
    sums = maps.sum(-1)
    if recipe.kernel == "sigmoid":
        maps = maps / sums[..., None]
    seen_by = batch.visible[:, None].sum(-2).clamp(min=1)  # [batch, 1, 1, key]
    received = maps.sum(-2) / seen_by
    is_sink = (received > eps) & (seen_by >= LEAST)
    taken = (1 - sums).mean(-1) if recipe.kernel in PARAMETER else torch.zeros_like(received[..., 0])
    each = F.cross_entropy(out.logits.transpose(1, 2), batch.target, reduction="none")
    losses = (each * batch.weight).sum(1) / batch.weight.sum(1)
    hidden = torch.stack([x.norm(dim=-1) for x in out.hidden_states[:-1]])  # what goes into each layer
    key, value = (torch.stack(norms[name]).transpose(-1, -2) for name in ("k_proj", "v_proj"))
    return Emergence(
        step=step,
        loss=losses.mean().item(),
        loss_error=(losses.std() / len(losses) ** 0.5).item(),
        sink=tuple(100 * is_sink[..., k].float().mean().item() for k in range(FIRST)),
        sink_any=100 * is_sink.any(-1).float().mean().item(),
        received=received[..., 0].mean().item(),
        bias=taken.mean().item(),
        sink_bias=100 * (taken > eps).float().mean().item(),
        hidden=_ratio(hidden).mean(1).max().item(),
        key=_ratio(key).mean().item(),
        value=_ratio(value).mean().item(),
        row_sum=sums.mean().item(),
    )


def held_out(out: Path, recipe: DecoderRecipe, n: int) -> Batch:
    """`n` held-out sequences, evenly spread over the text that no training saw."""
    data = prepare(out, recipe.vocabulary)
    ids = blocks(data.ids, held_out=True)
    starts = np.linspace(0, len(ids) - recipe.length - 1, n).astype(np.int64)
    return TextSampler(ids, recipe, data.tokenizer.bos_token_id, 0).batch(starts)


def emerge(out: Path, name: str, recipe: DecoderRecipe, n: int = 128, eps: float = 0.3) -> list[Emergence]:
    """A training's kept steps measured on `n` held-out sequences; those in `out/NAME.sinks.json` are not done again.

    Raises ValueError if that file was measured otherwise.
    """
    path, settings = out / f"{name}.sinks.json", {"n": n, "eps": eps}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": settings, "rows": []}
    if stored["settings"] != settings:
        raise ValueError(f"{path} was measured with {stored['settings']}, not {settings}; remove it or choose another")
    rows = [Emergence(**row | {"sink": tuple(row["sink"])}) for row in stored["rows"]]
    steps = sorted(int(p.stem.removeprefix("step-")) for p in (out / f"{name}.steps").glob("step-*.safetensors"))
    batch = held_out(out, recipe, n)
    for step in sorted(set(steps) - {row.step for row in rows}):
        rows.append(examine(at_step(out, name, recipe, step), batch, recipe, step, eps))
        rows.sort(key=lambda row: row.step)
        write_text(path, json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


def table(found: Mapping[str, Sequence[Emergence]]) -> str:
    """The last step of each recipe, a line each."""
    lines = ["recipe                    steps   loss            Sink_1   any key   bias   hidden   key  value  row sum"]
    for name, rows in found.items():
        r = rows[-1]
        lines.append(
            f"{name:<25}{r.step:>6}   {r.loss:.3f} +- {r.loss_error:.3f}{r.sink[0]:>7.1f} %{r.sink_any:>8.1f} %"
            f"{r.sink_bias:>5.1f} %{r.hidden:>8.1f}{r.key:>6.2f}{r.value:>7.2f}{r.row_sum:>9.2f}"
        )
    return "\n".join(lines)
