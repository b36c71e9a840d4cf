"""A caption that shows itself in a notebook: tokens coloured by T-VHD, objects marked, numbers to point at."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp import plots
from interp.evaluate.alignment import token_ends, tokens_of
from interp.evaluate.chair import score_caption
from interp.evaluate.objects import ObjectParser
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Inputs
from interp.trace.divergence import token_vhd
from interp.views.markup import figure_png, shade

WRONG, RIGHT = "3px dashed #b34700", "3px solid #005f99"


@dataclass(frozen=True, repr=False)
class CaptionView:
    """A caption: its tokens, T-VHD and probability of each, and which token belongs to an object.

    `objects[i]` is the object that token i names (None: no object); `hallucinated[i]` whether it is not in the picture,
    None where that is not known.
    """

    tokens: tuple[str, ...]
    t_vhd: tuple[float, ...]
    probability: tuple[float, ...]
    objects: tuple[str | None, ...]
    hallucinated: tuple[bool | None, ...]
    top_k: int

    def __str__(self) -> str:
        return "".join(self.tokens).strip()

    def __repr__(self) -> str:
        return f"CaptionView({str(self)!r})"

    def _repr_html_(self) -> str:
        """The caption as HTML that needs no script: the numbers are what a pointer over a token shows."""
        low, high = np.percentile(self.t_vhd, [5, 95])
        spans = [self._span(i, float(low), float(high)) for i in range(len(self.tokens))]
        legend = (
            f"T-VHD (k = {self.top_k}) {low:.1f} <span style='background:{shade(0, 0, 1)}'>pale</span> to {high:.1f} "
        )
        legend += f"<span style='background:{shade(1, 0, 1)};color:#111'>dark</span>"
        if any(flag is not None for flag in self.hallucinated):
            legend += f"; <span style='border-bottom:{WRONG}'>hallucinated ✗</span>, "
            legend += f"<span style='border-bottom:{RIGHT}'>in the picture</span>"
        return f"<div style='line-height:2'>{''.join(spans)}</div><div><small>{legend}</small></div>"

    def _span(self, i: int, low: float, high: float) -> str:
        told = [f"T-VHD {self.t_vhd[i]:.1f}", f"probability {self.probability[i]:.3f}"]
        style, wrong, name = (
            f"background:{shade(self.t_vhd[i], low, high)};color:#111",
            self.hallucinated[i],
            self.objects[i],
        )
        text = escape(self.tokens[i])
        if name is not None:
            told.insert(0, name if wrong is None else f"{name}, {'hallucinated' if wrong else 'in the picture'}")
        if wrong is not None:
            style += f";border-bottom:{WRONG if wrong else RIGHT}"
        last = i + 1 == len(self.tokens) or self.objects[i + 1] != name
        text = f"<b>{text}{' ✗' if last else ''}</b>" if wrong else text
        return f'<span style="{style}" title="{escape(", ".join(told))}">{text}</span>'

    def _repr_png_(self) -> bytes:
        """T-VHD of the tokens as bars, for where there is no HTML."""
        return figure_png(plots.t_vhd_along(self.tokens, self.t_vhd))


def caption_view(
    model: LVLM,
    inputs: Inputs,
    caption: Int[Tensor, " token"],
    truth: Collection[str] | None = None,
    parser: ObjectParser | None = None,
    top_k: int | None = None,
) -> CaptionView:
    """A caption of a batch of one, read by the model with the picture and without it.

    `truth`: the objects of the picture, so that those named can be told right or wrong.  ValueError for more than one
    picture, and for an empty caption.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"a caption is shown for a batch of one, got {len(inputs.input_ids)}")
    k = default_top_k(model.n_heads) if top_k is None else top_k
    (trace,) = token_vhd(model, inputs, [caption])
    decode = partial(model.tokenizer.decode, skip_special_tokens=True)
    ids = caption.tolist()
    text, ends = decode(ids).strip(), token_ends(decode, ids)
    score = score_caption(text, frozenset(truth or ()), parser or ObjectParser.coco())
    objects: list[str | None] = [None] * len(ids)
    wrong: list[bool | None] = [None] * len(ids)
    for mention, flag in zip(score.mentions, score.hallucinated, strict=True):
        for i in tokens_of(ends, mention.start, mention.end):
            objects[i], wrong[i] = mention.category, None if truth is None else flag
    tokens = tuple(text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))
    values = (tuple(token_divergence(trace.vhd, k).tolist()), tuple(trace.probability.tolist()))
    return CaptionView(tokens, *values, tuple(objects), tuple(wrong), k)
