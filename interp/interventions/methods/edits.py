"""Editing a fixed set of heads while a model generates: scale, zero, mean, resample, or take the image-free output.

`with EditHeads(heads="L3H2+L5H0", op="zero")(model): model.generate(...)`.  Edits can be combined; a head whose output
one of them replaces must not be edited by another.

A set of heads is written as labels (`L3H2+L5H0`), or chosen: `top10%`, `bottom10%` and `random10%` of all heads,
`top5` for a number of them, `top` for `share` of them.  `top` and `bottom` follow a ranking that `interp causal` has
written (`ranking`, a file; `by`, one of its maps); `random` draws from `seed`.

- `scale`: times `factor`; `zero`: silenced; `mean`: the head's mean output over a data set, from the same file;
- `resample`: what the head gives for the same text with the next row's picture; `image_free`: without the picture.

`steps`: `all` positions, those of the `prompt` but its last, or those from which tokens are `generated` (the prompt's
last and all later ones).  `resample` and `image_free` work on the latter: their prompts have other positions.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from interp.interventions.methods.contrast import Continuation
from interp.models import LVLM, Head, Inputs, image_free

OPS = ("scale", "zero", "mean", "resample", "image_free")
STEPS = ("all", "prompt", "generated")
_CHOSEN = re.compile(r"(top|bottom|random)(?:(\d+(?:\.\d+)?)(%?))?")


def read_ranking(path: str) -> dict[str, np.ndarray]:
    """The maps `[layer, head]` of a ranking file as it is now, and `mean` `[layer, head, d_head]`."""
    if not Path(path).is_file():
        raise ValueError(
            f"expected ranking=FILE, the heads.npz that interp causal --out DIR writes; there is none at {path!r}"
        )
    return _maps_in(Path(path).read_bytes())


@lru_cache(maxsize=8)
def _maps_in(content: bytes) -> dict[str, np.ndarray]:
    with np.load(BytesIO(content)) as file:
        return {name: file[name] for name in file.files}


def _map(path: str, by: str, shape: tuple[int, int]) -> np.ndarray:
    maps = read_ranking(path)
    known = [name for name, values in maps.items() if values.ndim == 2]
    if by not in known:
        raise ValueError(f"{path} ranks heads by {', '.join(known)}, got by={by!r}")
    if maps[by].shape != shape:
        raise ValueError(f"{path} ranks {maps[by].shape} layers and heads, this model has {shape}")
    if np.isnan(maps[by]).any():
        raise ValueError(f"{path} has no values of {by}: no such words came up; rank the heads on more images")
    return maps[by]


def head_set(
    text: str, shape: tuple[int, int], ranking: str = "", by: str = "vhd", seed: int = 0, share: float = 0.1
) -> tuple[Head, ...]:
    """The heads that a text names or chooses, of a model with `shape` layers and heads; ValueError if it names none."""
    n_layers, n_heads = shape
    chosen = _CHOSEN.fullmatch(text)
    if chosen is None:
        heads = Head.parse_list(text) if text else ()
        wrong = [str(h) for h in heads if h.layer >= n_layers or h.head >= n_heads]
        if wrong:
            raise ValueError(f"this model has layers 0 to {n_layers - 1} with heads 0 to {n_heads - 1}, got {wrong}")
        return heads
    how, number, percent = chosen[1], float(chosen[2] or 100 * share), chosen[3]
    size = int(number) if chosen[2] and not percent else round(number / 100 * n_layers * n_heads)
    if size > n_layers * n_heads:
        raise ValueError(f"this model has {n_layers * n_heads} heads, got {text}")
    if how == "random":
        order = np.random.default_rng(seed).permutation(n_layers * n_heads)
    else:
        values = _map(ranking, by, shape).ravel()
        order = np.argsort(-values if how == "top" else values, kind="stable")
    return tuple(sorted(Head(*divmod(int(i), n_heads)) for i in order[:size]))


_OPEN: list[tuple[LVLM, "EditHeads", frozenset[Head]]] = []


@dataclass(frozen=True)
class EditHeads:
    """A fixed set of heads is scaled, silenced, or given another output.

    `heads`: labels, or a choice such as top10% or top (`share` of all); `op`: scale, zero, mean, resample or
    image_free; `steps`: all, prompt, generated.  No heads change nothing.
    """

    heads: str = ""
    op: str = "scale"
    factor: float = 2.0
    steps: str = "all"
    ranking: str = ""
    by: str = "vhd"
    share: float = 0.1
    seed: int = 0

    citation: ClassVar[str] = "scaling as in He et al., ACL 2025; resampling as in Chan et al., causal scrubbing, 2022"
    cost: ClassVar[str] = "none; a second forward pass for each step for resample and image_free"
    off: ClassVar[str] = "heads="

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"op is one of {', '.join(OPS)}, got {self.op!r}")
        if self.steps not in STEPS:
            raise ValueError(f"steps is one of {', '.join(STEPS)}, got {self.steps!r}")
        if not isinstance(self.heads, str) or _CHOSEN.fullmatch(self.heads) is None:
            listed = Head.parse_list(self.heads) if self.heads else ()  # heads, pairs and labels from Python
            object.__setattr__(self, "heads", "+".join(map(str, listed)))
        if not 0 <= self.share <= 1:
            raise ValueError(f"share lies between 0 and 1, got {self.share}")

    @property
    def least_rows(self) -> int:
        """Rows that a batch must have: resample takes the next row's picture."""
        return 2 if self.op == "resample" else 1

    def chosen(self, model: LVLM) -> tuple[Head, ...]:
        """The heads of this model that are edited."""
        return head_set(self.heads, (model.n_layers, model.n_heads), self.ranking, self.by, self.seed, self.share)

    def _source(self, model: LVLM, inputs: Inputs) -> Inputs:
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
    def editing(self, model: LVLM, inputs: Inputs) -> Iterator[None]:
        """Edit forward passes over these prompts and what follows them, by `generate` or in one piece."""
        edit = _Edit(self, model, inputs)
        with ExitStack() as stack:
            for handle in edit.hooks():
                stack.callback(handle.remove)
            yield

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open; ValueError if another open edit does not go with this one."""
        heads = frozenset(self.chosen(model))
        for other_model, other, taken in _OPEN:
            both = heads & taken
            if other_model is model and both and not self.op == other.op == "scale":
                raise ValueError(
                    f"two open edits contradict on {', '.join(map(str, sorted(both)))} ({other.op} and {self.op}); "
                    "close one or choose other heads"
                )
        entry = (model, self, heads)
        _OPEN.append(entry)
        try:
            with model.steered(lambda steered, inputs: self.editing(steered, inputs)):
                yield
        finally:
            _OPEN.remove(entry)


class _Edit:
    """An edit of one batch: hooks on the output projections, and on the model where another stream is needed."""

    def __init__(self, method: EditHeads, model: LVLM, inputs: Inputs) -> None:
        self.method, self.model, self.inputs = method, model, inputs
        self.by_layer: dict[int, list[int]] = {}
        for head in method.chosen(model):
            self.by_layer.setdefault(head.layer, []).append(head.head)
        self.seen = self.n_new = 0  # tokens before and in this forward pass
        self.other: dict[int, Tensor] = {}
        self.source: Continuation | None = None
        self.inside = False  # whether the other stream is being read
        if method.op in ("resample", "image_free") and self.by_layer:
            if model.family.needs_pixels:  # they generate inside their language model, which sees no token ids at first
                raise ValueError(f"op={method.op} cannot follow what a {model.family.name} model generates")
            self.source = Continuation(model, method._source(model, inputs))
        if method.op == "mean":
            means = read_ranking(method.ranking)["mean"]
            self.means = torch.from_numpy(means).to(model.device, torch.float32)

    def hooks(self) -> Iterator[Any]:
        if not self.by_layer:
            return
        yield self.model.hf.register_forward_pre_hook(self.begin, with_kwargs=True)
        for layer in self.by_layer:
            yield self.model.out_proj(layer).register_forward_pre_hook(self.at(layer))

    def begin(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        """Before a forward pass: where it stands, and what the other stream gives for the same tokens."""
        if self.inside:
            return
        ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
        self.n_new, self.seen = ids.shape[1], 0 if cache is None else cache.get_seq_length()
        if self.source is None:
            return
        if len(ids) != len(self.inputs.input_ids):
            raise ValueError(f"op={self.method.op} cannot follow beams; generate with one")
        n_prompt = self.inputs.input_ids.shape[1]
        self.inside = True
        if self.seen:
            self.source.feed(ids)
        else:
            self.source.start()
            if self.n_new > n_prompt:  # a finished caption, in one piece
                first = {layer: z[:, -1:] for layer, z in self.other.items()}
                self.source.feed(ids[:, n_prompt:])
                self.other = {layer: torch.cat([first[layer], z], 1) for layer, z in self.other.items()}
        self.inside = False

    def at(self, layer: int) -> Any:
        heads = self.by_layer[layer]

        def before(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            z = self.model.by_head(args[0])
            if self.inside:
                self.other[layer] = z[..., heads, :].clone()
                return None
            last = min(self.inputs.input_ids.shape[1], z.shape[1]) - 1  # an image-free prompt may be shorter
            generated = torch.arange(z.shape[1], device=z.device) >= (0 if self.seen else last)
            replaced = self.method.op in ("resample", "image_free")
            steps = "generated" if replaced else self.method.steps
            chosen = {"all": torch.ones_like(generated), "prompt": ~generated, "generated": generated}[steps]
            if not chosen.any():
                return None
            z = z.clone()
            part = z[:, chosen][:, :, heads]
            z_new = self.new(layer, part, int(chosen.sum()))
            index = chosen.nonzero()[:, 0]
            z[:, index[:, None], torch.tensor(heads, device=z.device)] = z_new.to(z)
            return (z.reshape(args[0].shape),)

        return before

    def new(self, layer: int, z: Tensor, n: int) -> Tensor:
        """The output of this layer's chosen heads in place of `z` `[row, position, head, d_head]`."""
        if self.method.op == "scale":
            return z * self.method.factor
        if self.method.op == "zero":
            return torch.zeros_like(z)
        if self.method.op == "mean":
            return self.means[layer, self.by_layer[layer]].expand_as(z)
        return self.other[layer][:, -n:]
