"""AMBER's generative scores.

Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", arXiv 2311.07397.

`R` are the objects a response names, of those that the annotations know; `A` what is in the image; `H` what people
would imagine there.  CHAIR = 1 - |R & A| / |R|, Cover = |R & A| / |A|, Hal = share of responses with CHAIR > 0, Cog =
|R & H| / |R|, each averaged over responses.

Deviation: the benchmark's script matches nouns by word vectors and an association list; here words are matched by the
object parser, with the associations if their file is given.  Compare methods under the same script only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from interp.evaluate.objects import ObjectParser


@dataclass(frozen=True)
class AmberImage:
    """The annotations of a generative item."""

    truth: frozenset[str]
    hallucination: frozenset[str]


@dataclass(frozen=True)
class Amber:
    """AMBER over responses; rates in percent."""

    chair: float
    cover: float
    hal: float
    cog: float
    n: int


def read_amber(path: Path) -> dict[int, AmberImage]:
    """The generative items of AMBER's `annotations.json`, by id."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read AMBER's annotations {path}: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected AMBER's annotations.json, a list of items")
    found = {}
    for number, item in enumerate(content, 1):
        if not isinstance(item, dict) or "id" not in item or "type" not in item:
            raise ValueError(f"{path}, item {number}: expected id and type, got {str(item)[:80]}")
        if item["type"] != "generative":
            continue
        if not isinstance(item.get("truth"), list) or not isinstance(item.get("hallu"), list):
            raise ValueError(f"{path}, item {number}: a generative item has lists 'truth' and 'hallu'")
        lower = [frozenset(str(word).strip().lower() for word in item[key]) for key in ("truth", "hallu")]
        found[int(item["id"])] = AmberImage(*lower)
    if not found:
        raise ValueError(f"{path} holds no generative item")
    return found


def amber_parser(
    images: Mapping[int, AmberImage], associations: Mapping[str, Sequence[str]] | None = None
) -> ObjectParser:
    """A parser of every annotated word; an association counts as its word unless it is annotated itself."""
    words = {word for image in images.values() for word in image.truth | image.hallucination}
    table = {word: word for word in sorted(words)}
    for word, others in (associations or {}).items():
        if word in words:
            for other in others:
                table.setdefault(str(other).strip().lower(), word)
    return ObjectParser(table)


def counts(response: str, image: AmberImage, parser: ObjectParser) -> tuple[int, int, int, int]:
    """Objects named, of these in the image, of these imagined, and objects in the image."""
    named = parser.objects([response])
    return len(named), len(named & image.truth), len(named & image.hallucination), len(image.truth)


def amber(table: Float[np.ndarray, "response 4"]) -> Amber:
    """Scores from the counts of each response; one that names nothing does not hallucinate."""
    if not len(table):
        raise ValueError("expected at least one response, got none")
    named, right, imagined, true = np.asarray(table, dtype=float).T
    chair = np.divide(named - right, named, out=np.zeros_like(named), where=named > 0)
    cog = np.divide(imagined, named, out=np.zeros_like(named), where=named > 0)
    cover = np.divide(right, true, out=np.zeros_like(named), where=true > 0)
    means = (100 * float(x.mean()) for x in (chair, cover, chair > 0, cog))
    return Amber(*means, n=len(table))
