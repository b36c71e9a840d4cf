"""Editing a fixed set of heads while a model generates: scale, zero, mean, resample, or take the image-free output.

`with EditHeads(heads="L3H2+L5H0", op="zero")(model): model.generate(...)`.  Edits can be combined; a head whose output
one of them replaces must not be edited by another.  Sets of heads: `interp.interventions.primitives.head_sets`.

- `scale`: times `factor`; `zero`: silenced; `mean`: the head's mean output over a data set, from the ranking file;
- `resample`: what the head gives for the same text with the next row's picture; `image_free`: without the picture.

`steps`: `all` positions, those of the `prompt` but its last, or those from which tokens are `generated` (the prompt's
last and all later ones).  `resample` and `image_free` work on the latter: their prompts have other positions.

The first three change the model, so they act on whatever it reads.  The last two follow the text that is written, step
by step, and act on that alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.base import Method, Seed, Share, Within
from interp.interventions.primitives.continuation import Continuation
from interp.interventions.primitives.head_sets import CHOSEN, head_set, means_of
from interp.models import LVLM, GenerateOptions, Head, Inputs, image_free

Op = Literal["scale", "zero", "mean", "resample", "image_free"]
Steps = Literal["all", "prompt", "generated"]
FROM_ANOTHER_STREAM = ("resample", "image_free")


@dataclass(frozen=True)
class EditHeads(Method):
    """A fixed set of heads is scaled, silenced, or given another output.

    `heads`: labels, or a choice such as top10% or top (`share` of all); `op`: scale, zero, mean, resample or
    image_free; `steps`: all, prompt, generated.  No heads change nothing.
    """

    heads: str = ""
    op: Op = "scale"
    factor: Annotated[float, Within(-1000, 1000)] = 2.0
    steps: Steps = "all"
    ranking: str = ""
    by: str = "vhd"
    share: Share = 0.1
    seed: Seed = 0

    citation: ClassVar = "scaling as in He et al., ACL 2025; resampling as in Chan et al., causal scrubbing, 2022"
    cost: ClassVar = "none; a second forward pass for each step for resample and image_free"
    off: ClassVar = "heads="
    passes: ClassVar = {
        "main": "the text is written by the edited model",
        "contrast": "a contrast is between two inputs, not between two models",
        "choice": "what is chosen is chosen for the edited model",
        "source": "what is put in place comes from the edited model",
    }

    def __post_init__(self) -> None:
        if not isinstance(self.heads, str) or CHOSEN.fullmatch(self.heads) is None:
            listed = Head.parse_list(self.heads) if self.heads else ()  # heads, pairs and labels from Python
            object.__setattr__(self, "heads", "+".join(map(str, listed)))
        super().__post_init__()

    @property
    def least_rows(self) -> int:
        """Rows that a batch must have: resample takes the next row's picture."""
        return 2 if self.op == "resample" else 1

    def acts_on(self, name: str) -> bool:
        """Whether a pass is edited; outputs from another stream are at hand for the text that is written only."""
        return name == "main" if self.op in FROM_ANOTHER_STREAM else name in self.passes

    def chosen(self, model: LVLM) -> tuple[Head, ...]:
        """The heads of this model that are edited."""
        return head_set(self.heads, (model.n_layers, model.n_heads), self.ranking, self.by, self.seed, self.share)

    def check(self, model: LVLM) -> None:
        """ValueError for heads this model has not, without what `op` needs, or beside an open edit of the same."""
        super().check(model)
        heads = set(self.chosen(model))
        if heads and self.op == "mean":
            means_of(self.ranking, (model.n_layers, model.n_heads, model.d_head))
        if heads and self.op in FROM_ANOTHER_STREAM:
            if not model.family.has_vision:
                raise ValueError(f"op={self.op} works with pictures, and {model.name} is a plain language model")
            if model.family.needs_pixels:  # they generate inside their language model, which sees no token ids at first
                raise ValueError(f"op={self.op} cannot follow what a {model.family.name} model generates")
        for other in (m for m in model.methods if isinstance(m, EditHeads)):
            both = heads & set(other.chosen(model))
            if both and not self.op == other.op == "scale":
                raise ValueError(
                    f"two open edits contradict on {', '.join(map(str, sorted(both)))} ({other.op} and {self.op}); "
                    "close one or choose other heads"
                )

    def source(self, model: LVLM, inputs: Inputs) -> Inputs:
        """The batch whose head outputs are put in place of the model's."""
        if self.op == "image_free":
            return image_free(model, inputs)
        if len(inputs.pictures) < 2:
            raise ValueError("op=resample takes the next row's picture: expected a batch of at least two rows")
        pictures = inputs.pictures[1:] + inputs.pictures[:1]
        try:
            other = model.processed(pictures, inputs.texts)
        except ValueError as error:
            raise ValueError(f"op=resample: the rows' pictures do not fit each other's prompts: {error}") from error
        return other

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Edit forward passes over these prompts and what follows them, by `generate` or in one piece."""
        edit = _Edit(self, model, inputs)
        with ExitStack() as stack:
            for handle in edit.hooks():
                stack.callback(handle.remove)
            yield GenerateOptions()


class _Edit:
    """An edit of one batch: hooks on the output projections, and on the model where another stream is needed."""

    def __init__(self, method: EditHeads, model: LVLM, inputs: Inputs) -> None:
        self.method, self.model, self.inputs = method, model, inputs
        self.by_layer: dict[int, list[int]] = {}
        for head in method.chosen(model):
            self.by_layer.setdefault(head.layer, []).append(head.head)
        self.other: dict[int, Tensor] = {}
        self.stream: Continuation | None = None
        self.replaced = method.op in FROM_ANOTHER_STREAM
        if self.replaced and self.by_layer:
            self.source = method.source(model, inputs)
        if method.op == "mean" and self.by_layer:
            means = means_of(method.ranking, (model.n_layers, model.n_heads, model.d_head))
            self.means = torch.from_numpy(means).to(model.device, torch.float32)

    def hooks(self) -> Iterator[Any]:
        if self.replaced and self.by_layer:
            yield self.model.hf.register_forward_pre_hook(self.read_source, with_kwargs=True)
        for layer in self.by_layer:
            yield self.model.out_proj(layer).register_forward_pre_hook(self.at(layer))

    def read_source(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        """Before a pass over the text that is written: what the other stream gives for the same tokens."""
        if self.model.now.name != "main":
            return
        ids, n_prompt = kwargs["input_ids"], self.inputs.input_ids.shape[1]
        if self.model.now.prompts is not None or len(ids) != len(self.inputs.input_ids):
            raise ValueError(f"op={self.method.op} cannot follow beams; generate with one")
        if self.stream is not None and self.model.now.goes_on(ids.shape[1]):
            self.stream.feed(ids)
            return
        self.stream = Continuation(self.model, self.source, "source", self)
        self.stream.start()
        if ids.shape[1] > n_prompt:  # a finished caption, in one piece
            first = {layer: z[:, -1:] for layer, z in self.other.items()}
            self.stream.feed(ids[:, n_prompt:])
            self.other = {layer: torch.cat([first[layer], z], 1) for layer, z in self.other.items()}

    def at(self, layer: int) -> Any:
        heads = self.by_layer[layer]
        chosen = torch.zeros(self.model.n_heads, self.model.d_head, dtype=torch.bool, device=self.model.device)
        chosen[heads] = True
        edited = self.edited(layer, chosen.flatten())

        def before(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            now, x = self.model.now, args[0]
            if now.owner is self:
                self.other[layer] = self.model.by_head(x)[..., heads, :].clone()
                return None
            if not self.method.acts_on(now.name):
                return None
            start, stop = self.positions(x.shape[1])
            if (start, stop) == (0, x.shape[1]):
                return (edited(x),)
            if start == stop:
                return None
            return (torch.cat([x[:, :start], edited(x[:, start:stop]), x[:, stop:]], 1),)

        return before

    def positions(self, n_tokens: int) -> tuple[int, int]:
        """The first position of this pass that is edited, and the one after the last."""
        last = min(self.inputs.input_ids.shape[1], n_tokens) - 1  # an image-free prompt may be shorter
        begins = 0 if self.model.now.goes_on(n_tokens) else last
        steps = "generated" if self.replaced else self.method.steps
        return {"all": (0, n_tokens), "prompt": (0, begins), "generated": (begins, n_tokens)}[steps]

    def edited(self, layer: int, chosen: Bool[Tensor, " output"]) -> Callable[[Tensor], Tensor]:
        """What turns a layer's head outputs, side by side `[row, position, head * d_head]`, into edited ones."""
        if self.method.op == "scale":
            return lambda x: torch.where(chosen.to(x.device), x * self.method.factor, x)
        if self.method.op == "zero":
            return lambda x: x.masked_fill(chosen.to(x.device), 0)
        if self.method.op == "mean":
            means = self.means[layer].flatten()
            return lambda x: torch.where(chosen.to(x.device), means.to(x), x)

        def replaced(x: Tensor) -> Tensor:
            z = self.model.by_head(x).clone()
            z[:, :, self.by_layer[layer]] = self.other[layer][:, -z.shape[1] :].to(z)
            return z.flatten(-2)

        return replaced
