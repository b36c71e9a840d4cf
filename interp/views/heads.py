"""Which heads look at one picture: VHD at the first step, T-VHD along a caption, as tables, arrays and figures."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp import plots
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Head, Inputs
from interp.trace.divergence import TokenTrace, token_vhd, vhd
from interp.views.caption import CaptionView
from interp.views.head_map import HeadMap


@dataclass(frozen=True)
class HeadsConfig:
    """Settings of one look at a picture; they are saved beside its results."""

    model: str
    image: str
    prompt: str
    image_free: str = "remove"
    top: int = 20
    top_k: int | None = None


@dataclass(frozen=True)
class HeadsReport:
    """VHD `[layer, head]` of the first step; with a caption its tokens, their T-VHD and VHD `[token, layer, head]`."""

    config: HeadsConfig
    vhd: Float[np.ndarray, "layer head"]
    caption: str | None = None
    tokens: tuple[str, ...] = ()
    t_vhd: tuple[float, ...] = ()
    probability: tuple[float, ...] = ()
    token_vhd: Float[np.ndarray, "token layer head"] | None = None

    def ranking(self) -> list[tuple[Head, float]]:
        """All heads, the one that the picture moves most first."""
        order = np.argsort(-self.vhd, axis=None, kind="stable")
        n_heads = self.vhd.shape[1]
        return [(Head(*divmod(int(i), n_heads)), float(self.vhd.flat[i])) for i in order]

    def __str__(self) -> str:
        lines = [
            f"VHD at the first step, picture {self.config.image}, image-free by {self.config.image_free}",
            "rank  head     VHD",
        ]
        for rank, (head, value) in enumerate(self.ranking()[: self.config.top], 1):
            lines.append(f"{rank:4d}  {head!s:<7} {value:7.3f}")
        if self.caption is not None:
            lines += [
                "",
                f"caption: {self.caption}",
                f"token                 T-VHD (k = {self.config.top_k})  probability",
            ]
            for token, value, p in zip(self.tokens, self.t_vhd, self.probability, strict=True):
                lines.append(f"{token!r:<20} {value:7.2f}          {p:.3f}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The map to point at, and the caption under it, in a notebook."""
        shown = HeadMap(self.vhd, "VHD", "VHD at the first step")._repr_html_()
        if not self.tokens:
            return shown
        unknown = (None,) * len(self.tokens)
        caption = CaptionView(self.tokens, self.t_vhd, self.probability, unknown, unknown, self.config.top_k or 1)
        return shown + caption._repr_html_()

    def write(self, out: Path) -> None:
        """Save `heads.csv`, `tokens.csv`, `vhd.npz`, the figures and the settings in a folder."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "heads.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        ranked = [(i, str(head), *head, value) for i, (head, value) in enumerate(self.ranking(), 1)]
        _table(out / "heads.csv", ("rank", "label", "layer", "head", "vhd"), ranked)
        arrays = {"vhd": self.vhd}
        plots.save(plots.head_heatmap(self.vhd, "VHD (Euclidean distance)", "VHD at the first step"), out / "vhd.png")
        if self.token_vhd is not None:
            arrays |= {"token_vhd": self.token_vhd, "t_vhd": np.array(self.t_vhd)}
            rows = [(i, *r) for i, r in enumerate(zip(self.tokens, self.t_vhd, self.probability, strict=True))]
            _table(out / "tokens.csv", ("position", "token", "t_vhd", "probability"), rows)
            plots.save(plots.t_vhd_along(self.tokens, self.t_vhd), out / "t_vhd.png")
        np.savez(out / "vhd.npz", allow_pickle=False, **arrays)


def _table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def look(model: LVLM, inputs: Inputs, config: HeadsConfig, caption: Int[Tensor, " token"] | None = None) -> HeadsReport:
    """Rank the heads by how far the picture moves them, and follow a caption token by token if one is given.

    `inputs` is a batch of one; ValueError for more, and for a caption without tokens.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"expected a batch of one picture, got {len(inputs.input_ids)}")
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    config = replace(config, top_k=top_k)
    first = vhd(model, inputs, config.image_free)[0].float().cpu().numpy()
    if caption is None:
        return HeadsReport(config, first)
    if not len(caption):
        raise ValueError("the model wrote an empty caption; give one to follow")
    trace: TokenTrace = token_vhd(model, inputs, [caption], config.image_free)[0]
    return HeadsReport(
        config,
        first,
        model.tokenizer.decode(caption, skip_special_tokens=True).strip(),
        tuple(model.tokenizer.decode([i]) for i in caption.tolist()),
        tuple(token_divergence(trace.vhd, top_k).tolist()),
        tuple(trace.probability.tolist()),
        trace.vhd.float().cpu().numpy(),
    )
