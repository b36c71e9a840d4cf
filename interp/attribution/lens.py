"""What the residual stream, and what heads and layers add to it, say in words.

nostalgebraist, "interpreting GPT: the logit lens", 2020; Elhage et al., "A Mathematical Framework for Transformer
Circuits", 2021.  The logit lens reads a residual stream as if it were the last: final norm, unembedding.  Direct logit
attribution sends what one part adds through the same norm with its denominator held at the value it has at the end;
what later layers make of it is left out, and so is a soft cap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import LVLM, Inputs, head_results, read
from interp.models.sites import Site

STREAMS = ("resid_pre", "resid_post")
ADDED = ("attn_out", "mlp_out", "result")


@dataclass(frozen=True)
class FirstTokens:
    """The token that begins each word inside a sentence; `shared` lists the words that begin with the same one."""

    words: tuple[str, ...]
    ids: Int[Tensor, " word"]

    @property
    def shared(self) -> list[tuple[str, ...]]:
        """Groups of words that their first tokens do not tell apart."""
        groups: dict[int, list[str]] = {}
        for word, token in zip(self.words, self.ids.tolist(), strict=True):
            groups.setdefault(token, []).append(word)
        return [tuple(group) for group in groups.values() if len(group) > 1]


def first_tokens(model: LVLM, words: Sequence[str]) -> FirstTokens:
    """The first token of each word as it stands inside a sentence, after a space.

    A piece for the space alone is passed over.  Raises ValueError if a tokenizer joins a word with what precedes it.
    """
    before = "a a"
    head = model.tokenizer(before, add_special_tokens=False).input_ids
    found = []
    for word in words:
        ids = model.tokenizer(f"{before} {word}", add_special_tokens=False).input_ids
        if ids[: len(head)] != head or len(ids) == len(head):
            raise ValueError(f"this tokenizer joins {word!r} with the word before it; its first token is not defined")
        rest = [i for i in ids[len(head) :] if model.tokenizer.decode([i]).strip()]
        found.append((rest or ids[len(head) :])[0])
    return FirstTokens(tuple(words), torch.tensor(found, device=model.device))


class _Unembedding:
    """The way from the residual stream to logits."""

    def __init__(self, model: LVLM) -> None:
        self.norm = attrgetter(model.family.final_norm)(model.hf)
        self.head = model.hf.get_output_embeddings()
        self.cap = getattr(model.hf.config.get_text_config(), "final_logit_softcapping", None)
        self.bias = getattr(self.norm, "bias", None)

    def logits(self, stream: Tensor) -> Tensor:
        """What a residual stream says as if it were the last."""
        place = next(self.norm.parameters())
        logits = self.head(self.norm(stream.to(place))).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def centred(self, x: Tensor) -> Tensor:
        """A layer norm takes the mean away, an RMS norm does not."""
        return x - x.mean(-1, keepdim=True) if self.bias is not None else x

    def slope(self, last: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Gain over denominator of the norm, for a last residual stream."""
        place = next(self.norm.parameters())
        normed = self.norm(last.to(place)).float() - (0 if self.bias is None else self.bias.float())
        return normed / self.centred(last.float())


@torch.no_grad()
def head_logits(
    model: LVLM, inputs: Inputs, positions: Int[Tensor, "batch position"], ids: Int[Tensor, "*place word"]
) -> Float[Tensor, "batch layer position head word"]:
    """What each head adds to the logits of words at some positions: direct logit attribution.

    `ids` `[word]` are the same everywhere, `[batch, position, word]` each position's own.
    """
    found = read(
        model,
        inputs,
        ["z", "resid_post"],
        positions=positions,
        reduce=lambda site, layer, x: x if site == "z" or layer == model.n_layers - 1 else None,
    )
    unembedding = _Unembedding(model)
    slope = unembedding.slope(found["resid_post"][:, 0])[:, :, None]
    rows = model.hf.get_output_embeddings().weight[ids.to(model.device)].float()
    rows = rows.expand(*positions.shape, *rows.shape[-2:])
    layers = []
    for layer in range(model.n_layers):
        written = unembedding.centred(head_results(model, found["z"][:, layer], layer).float()) * slope
        layers.append(torch.einsum("bphd,bpwd->bphw", written, rows.to(written.device)))
    return torch.stack([layer.to(model.device) for layer in layers], 1)


@dataclass(frozen=True)
class Lens:
    """The words that a site says most, `[batch, layer, position, rank]` (`result`: `[..., position, head, rank]`).

    `score` is a probability for residual streams (`words` given: among those words), and for what is added to them the
    logits added, less their mean over the words that compete.  `ids` are tokens, `positions` places in the sequence.
    """

    site: str
    positions: Int[Tensor, "batch position"]
    ids: Int[Tensor, "batch layer position *rank"]
    score: Float[Tensor, "batch layer position *rank"]
    texts: dict[int, str]

    def text(self, *place: int) -> str:
        """The word at `[batch, layer, position, ..., rank]`."""
        return self.texts[int(self.ids[place])]


@torch.no_grad()
def lens(
    model: LVLM,
    inputs: Inputs,
    site: str = "resid_post",
    positions: Int[Tensor, "batch position"] | None = None,
    *,
    words: Sequence[str] | None = None,
    top: int = 5,
) -> Lens:
    """What a site says at each layer and position (None: everywhere), text and image tokens alike.

    `site` is a residual stream (`resid_pre`, `resid_post`) or what is added to it (`attn_out`, `mlp_out`, `result`).
    All tokens compete, or only the first tokens of `words`.  Raises ValueError for other sites.
    """
    name = Site.parse(site)
    if name.name not in (*STREAMS, *ADDED) or not name.in_every_layer:
        raise ValueError(f"a lens looks at {', '.join((*STREAMS, *ADDED))}, got {site!r}")
    if positions is None:
        positions = torch.arange(inputs.input_ids.shape[1]).expand(len(inputs.input_ids), -1)
    unembedding, allowed = _Unembedding(model), None if words is None else first_tokens(model, words)
    chosen = None if allowed is None else allowed.ids.unique()
    n = unembedding.head.weight.shape[0] if chosen is None else len(chosen)
    if not 1 <= top <= n:
        raise ValueError(f"top is between 1 and the {n} tokens that compete, got {top}")
    slope = None
    if site in ADDED:
        last = read(model, inputs, f"blocks.{model.n_layers - 1}.resid_post", positions=positions)
        slope = unembedding.slope(next(iter(last.values())))

    def said(_: str, __: int, x: Tensor) -> Tensor:
        if slope is None:
            logits = unembedding.logits(x)
        else:
            factor = slope[:, :, None] if x.ndim == 4 else slope
            weight = unembedding.head.weight if chosen is None else unembedding.head.weight[chosen]
            logits = (unembedding.centred(x.float()) * factor.to(x.device)) @ weight.float().T.to(x.device)
        if chosen is not None and slope is None:
            logits = logits[..., chosen.to(logits.device)]
        scores = logits.softmax(-1) if slope is None else logits - logits.mean(-1, keepdim=True)
        best = scores.topk(top, dim=-1)
        tokens = best.indices if chosen is None else chosen.to(best.indices.device)[best.indices]
        return torch.stack([tokens.double(), best.values.double()], -1)  # a double holds every token id

    if site == "result":  # a vector for each head: kept layer by layer
        both = read(model, inputs, site, positions=positions, reduce=said)[site]
    else:
        streams = read(model, inputs, site, positions=positions)[site]
        both = torch.stack([said(site, i, streams[:, i]) for i in range(model.n_layers)], 1)
    ids = both[..., 0].long()
    return Lens(site, positions, ids, both[..., 1].float(), _texts(model, ids, allowed))


def _texts(model: LVLM, ids: Tensor, allowed: FirstTokens | None) -> dict[int, str]:
    """How tokens are shown: as text, or as the words that begin with them."""
    found = {int(i): model.tokenizer.decode([int(i)]) for i in ids.unique()}
    if allowed is not None:
        for token in found:
            names = [w for w, i in zip(allowed.words, allowed.ids.tolist(), strict=True) if i == token]
            found[token] = "/".join(names)
    return found
