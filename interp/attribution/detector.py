"""What the inside of a model tells of an object word at the step that is about to write it, for a linear detector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Inputs, read
from interp.trace.divergence import token_vhd

INSIDE = ("T-VHD", "VHD of all heads", "head outputs", "residual stream")
"""What a detector may look at beside position, probability and the word itself."""


@dataclass(frozen=True)
class WordFeatures:
    """The object words of a batch, row by row: features at the position that predicts each word's first token.

    `position` is the token's place in the caption, `mention` counts the caption's object words, `log_p` and `entropy`
    (nats) are of the model's next-token distribution; `inside` holds `INSIDE`, layers and heads side by side.
    """

    position: Float[np.ndarray, " word"]
    mention: Float[np.ndarray, " word"]
    log_p: Float[np.ndarray, " word"]
    entropy: Float[np.ndarray, " word"]
    inside: dict[str, Float[np.ndarray, "word column"]]


@torch.no_grad()
def word_features(
    model: LVLM, inputs: Inputs, captions: Sequence[Int[Tensor, " _"]], words: Sequence[Sequence[int]]
) -> WordFeatures:
    """Features of the words that begin at the tokens `words[row]` of finished captions; every row names some.

    One traced pass over the captions and one over captions with and without the picture.
    """
    if not all(len(row) for row in words):
        raise ValueError("expected at least one object word in each caption")
    n_prompt, longest = inputs.input_ids.shape[1], max(len(row) for row in words)
    places = torch.tensor([[n_prompt - 1 + t for t in row] + [0] * (longest - len(row)) for row in words])
    whole = inputs.extended(captions)
    last = f"blocks.{model.n_layers - 1}.resid_post"
    found = read(model, whole, ["z", "resid_pre", last, "final_norm"], positions=places.to(model.device))
    distribution = model.hf.get_output_embeddings()(found["final_norm"]).float().log_softmax(-1)
    streams = torch.cat([found["resid_pre"], found[last][:, None]], 1)
    traces = token_vhd(model, inputs, captions)
    inside: dict[str, list[Tensor]] = {name: [] for name in INSIDE}
    columns: dict[str, list[float]] = {name: [] for name in ("position", "mention", "log_p", "entropy")}
    for row, tokens in enumerate(words):
        n, vhd = len(tokens), traces[row].vhd[list(tokens)]
        inside["T-VHD"].append(token_divergence(vhd, default_top_k(model.n_heads))[:, None])
        inside["VHD of all heads"].append(vhd.flatten(1))
        inside["head outputs"].append(found["z"][row, :, :n].transpose(0, 1).flatten(1))
        inside["residual stream"].append(streams[row, :, :n].transpose(0, 1).flatten(1))
        columns["position"] += map(float, tokens)
        columns["mention"] += map(float, range(n))
        columns["log_p"] += traces[row].probability[list(tokens)].clamp(min=1e-30).log().tolist()
        columns["entropy"] += (-(distribution[row, :n].exp() * distribution[row, :n]).sum(-1)).tolist()
    return WordFeatures(
        **{name: np.array(values) for name, values in columns.items()},
        inside={name: torch.cat(parts).double().cpu().numpy() for name, parts in inside.items()},
    )
