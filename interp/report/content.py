"""What a report shows of a study's captions, from its records: the data that the page's script reads.

Keys are short, for there may be thousands of captions.  `parts` cut a text into stretches `[start, end, token]`, token
-1 where it is not known which token wrote a stretch.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.experiments.compared import BASELINE
from interp.experiments.records import CaptionRecord, ItemId


def parts_of(record: CaptionRecord) -> list[tuple[int, int, int]]:
    """A caption in stretches: one a token where the record has the tokens' ends, else its object words and the rest."""
    text = record.caption
    if record.ends is not None:
        starts = [0, *record.ends[:-1]]
        spans = [(a, min(b, len(text)), i) for i, (a, b) in enumerate(zip(starts, record.ends, strict=True))]
        return [span for span in spans if span[0] < span[1]]
    found, at = [], 0
    for mention in record.mentions:
        if mention.start > at:
            found.append((at, mention.start, -1))
        if mention.start >= at:
            found.append((mention.start, mention.end, mention.token))
            at = mention.end
    return [*found, (at, len(text), -1)] if at < len(text) else found


@dataclass(frozen=True)
class Look:
    """What the heads did at each token of a caption: `heads` `[token, top, 2]` layer and head, by falling VHD.

    `vhd` and `mass` (share of a head's attention on the picture) are `[token, top]`; `maps` `[token, top, row, column]`
    is where on the picture, None where image tokens have no place.  T-VHD and probability `[token]` are of the model
    without a method.
    """

    heads: np.ndarray
    vhd: np.ndarray
    mass: np.ndarray
    maps: np.ndarray | None
    t_vhd: np.ndarray
    probability: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Maps as bytes in base64, each scaled so that its largest cell is 255; `most` are those cells' shares."""
        found: dict[str, Any] = {
            "top": self.heads.shape[1],
            "heads": self.heads.reshape(-1).tolist(),
            "vhd": np.round(self.vhd, 2).reshape(-1).tolist(),
            "mass": np.round(self.mass, 3).reshape(-1).tolist(),
        }
        if self.maps is not None:
            most = self.maps.max((2, 3))
            scaled = np.round(255 * self.maps / np.maximum(most, 1e-12)[..., None, None]).astype(np.uint8)
            found |= {"maps": base64.b64encode(scaled.tobytes()).decode(), "grid": list(self.maps.shape[2:])}
            found["most"] = np.round(most, 3).reshape(-1).tolist()
        return found


def _caption(record: CaptionRecord, look: Look | None) -> dict[str, Any]:
    t_vhd, probability = record.t_vhd, record.probability
    if t_vhd is None and look is not None:
        t_vhd, probability = np.round(look.t_vhd, 2).tolist(), np.round(look.probability, 4).tolist()
    found: dict[str, Any] = {
        "text": record.caption,
        "parts": parts_of(record),
        "objects": [[m.start, m.end, int(m.hallucinated), m.object] for m in record.mentions],
    }
    more = {"t": t_vhd, "p": probability, "look": None if look is None else look.as_json()}
    return found | {key: value for key, value in more.items() if value is not None}


def captions_data(
    records: Sequence[CaptionRecord],
    pictures: Mapping[ItemId, str],
    looks: Mapping[tuple[ItemId, str], Look],
    top_k: int | None,
) -> dict[str, Any]:
    """Everything that the page of captions needs; `pictures` are data URIs by image."""
    methods = list(dict.fromkeys(r.method for r in records))
    by = {(r.image_id, r.method): r for r in records}
    images = []
    for i in dict.fromkeys(r.image_id for r in records):
        mine = [by.get((i, method)) for method in methods]
        truth = next(r.truth for r in mine if r is not None)
        shown = [None if r is None else _caption(r, looks.get((i, r.method))) for r in mine]
        images.append({"id": str(i), "picture": pictures.get(i), "truth": list(truth), "captions": shown})
    t_vhd = [v for image in images for c in image["captions"] if c and "t" in c for v in c["t"]]
    limits = np.percentile(t_vhd, [5, 95]).round(2).tolist() if t_vhd else None
    return {"methods": methods, "baseline": BASELINE, "images": images, "limits": limits, "k": top_k}


def disagreeing_first(records: Sequence[CaptionRecord]) -> list[ItemId]:
    """The images, first those that one method's caption hallucinates about and another's does not."""
    wrong: dict[ItemId, set[bool]] = {}
    for r in records:
        wrong.setdefault(r.image_id, set()).add(any(m.hallucinated for m in r.mentions))
    return sorted(wrong, key=lambda i: len(wrong[i]) < 2)
