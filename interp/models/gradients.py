"""Gradients: sites read with gradients on, in one forward pass, and the slope of anything made of the logits.

    graph = differentiable(model, inputs, ["z"])
    slope = graph.slopes(graph.logits[:, -1, word].sum())["z"]  # [batch, layer, token, head, d_head]
    (slope * graph.values["z"]).sum(-1)  # what each head does for the word, to first order

Each further quantity costs one backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.inputs import Inputs
from interp.models.kernels import AttentionCall
from interp.models.lvlm import LVLM
from interp.models.sites import Site, run_pass


@dataclass(frozen=True)
class Graph:
    """A forward pass that can be differentiated.

    `logits` are those of the last positions that were asked for.  `parts` holds each site's tensors, one a layer, as
    they stand in the graph; `values` the same without gradients, the layers stacked as the second axis as in `read`.
    """

    logits: Float[Tensor, "batch keep vocabulary"]
    parts: dict[str, list[Tensor]]

    def _stacked(self, name: str, layers: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(layers), 1) if Site.parse(name).in_every_layer else layers[0]

    @property
    def values(self) -> dict[str, Tensor]:
        """What the sites held."""
        return {name: self._stacked(name, [x.detach() for x in layers]) for name, layers in self.parts.items()}

    def slopes(self, objective: Float[Tensor, ""]) -> dict[str, Tensor]:
        """The derivative of a scalar by every value at the sites, in their shapes; the graph is kept for more.

        Raises ValueError if the objective was not made of this graph's logits.
        """
        every = [x for layers in self.parts.values() for x in layers]
        if objective.numel() != 1 or not objective.requires_grad:
            raise ValueError(f"expected one number made of graph.logits, got a tensor of {list(objective.shape)}")
        found = torch.autograd.grad(objective, every, retain_graph=True, materialize_grads=True)
        slopes = iter(found)
        return {name: self._stacked(name, [next(slopes) for _ in layers]) for name, layers in self.parts.items()}


def differentiable(model: LVLM, inputs: Inputs, sites: str | Sequence[str], *, keep: int | None = 1) -> Graph:
    """Run one forward pass with gradients on and hold on to the sites' values; `keep` as in `run_with_edits`.

    Any site that can be edited: `attention` and `result` cannot (`z` says the same).  Weights get no gradients.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    for name in names:
        if Site.parse(name).name in ("attention", "result", "logits"):
            raise ValueError(f"{name!r} is no place to differentiate by; expected a site that can be edited, such as z")
    if model.remote:
        raise ValueError("gradients of a remote model are not sent back; load it without remote=True")
    parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def hold(name: str, _: int, value: Tensor | AttentionCall) -> Tensor:
        assert isinstance(value, Tensor)
        if not value.requires_grad:  # the weights are frozen or quantised
            value = value.detach().requires_grad_()
        parts[name].append(value)
        return value  # put back, so that what follows is made of it

    edits = [(name, partial(hold, name)) for name in names]
    logits = run_pass(model, inputs, edits, keep, {}, with_gradients=True)
    return Graph(logits, parts)
