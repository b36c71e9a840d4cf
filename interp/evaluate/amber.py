"""AMBER's generative scores.

Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", arXiv 2311.07397.

`R` are the objects a response names, of those that the annotations know; `A` what is in the image; `H` what people
would imagine there.  CHAIR = 1 - |R & A| / |R|, Cover = |R & A| / |A|, Hal = share of responses with CHAIR > 0, Cog =
|R & H| / |R|, each averaged over responses: the paper's definitions, and `amber`.

The benchmark's script (junyangwang0410/AMBER `inference.py` @5e1fd52), from which published numbers come, is `pooled`:
every mention counts, CHAIR, Cover and Cog are taken over all responses together, and Cog is the share of the annotated
`hallu` words that come up, not of the objects named.  Compare with published numbers by `pooled` only, and
remember the deviation: that script matches nouns by word vectors and an association list; here words are matched by the
object parser, with the associations if their file is given.  Compare methods under the same script only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.evaluate.objects import ObjectParser
from interp.evaluate.reading import image_number, read_json, read_lines, read_text, require_fields


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
    content = read_json(path, "AMBER's annotations.json, a list of items")
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected AMBER's annotations.json, a list of items")
    found: dict[int, AmberImage] = {}
    for number, item in enumerate(content, 1):
        place = f"{path}, item {number}"
        require_fields(item, {"id": (int, str), "type": (str,)}, place)
        if item["type"] != "generative":
            continue
        image_id = image_number(item["id"])
        if image_id is None or image_id in found:
            raise ValueError(f"{place}: expected an id that is a number and stands there once, got {item['id']!r}")
        found[image_id] = AmberImage(*(_words(item.get(key), f"{place}, {key!r}") for key in ("truth", "hallu")))
    if not any(image.truth | image.hallucination for image in found.values()):
        raise ValueError(f"{path} holds no generative item with an object")
    return found


def _words(value: Any, place: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise ValueError(f"{place}: expected a list of words, got {str(value)[:80]}")
    return frozenset(word.strip().lower() for word in value)


def read_associations(path: Path) -> dict[str, frozenset[str]]:
    """AMBER's `relation.json`: a word, and the words that count as it."""
    expected = "AMBER's relation.json, a word and the words that count as it"
    content = read_json(path, expected, names_once=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {expected}")
    return {word: _words(others, f"{path}, {word!r}") for word, others in content.items()}


def read_responses(path: Path) -> dict[int, str]:
    """AMBER's responses by id, from JSONL or a JSON list of `{"id", "response"}`."""
    kinds: dict[str, tuple[type, ...]] = {"id": (int,), "response": (str,)}
    found: dict[int, str] = {}
    if read_text(path).lstrip()[:1] == "[":
        rows = enumerate(read_json(path, 'a list of {"id", "response"}'), 1)
        name = "item"
    else:
        rows, name = read_lines(path, kinds), "line"
    for number, row in rows:
        place = f"{path}, {name} {number}"
        require_fields(row, kinds, place)
        if row["id"] in found:
            raise ValueError(f"{place}: id {row['id']} stands there twice; keep one of them")
        found[row["id"]] = row["response"]
    if not found:
        raise ValueError(f'{path} holds no response; expected a list of {{"id", "response"}}')
    return found


def amber_parser(
    images: Mapping[int, AmberImage], associations: Mapping[str, Collection[str]] | None = None
) -> ObjectParser:
    """A parser of every annotated word; an association counts as its word unless it is annotated itself."""
    words = {word for image in images.values() for word in image.truth | image.hallucination}
    table = {word: word for word in sorted(words)}
    for word, others in (associations or {}).items():
        if word in words:
            for other in sorted(others):
                table.setdefault(other, word)
    return ObjectParser(table)


def counts(response: str, image: AmberImage, parser: ObjectParser) -> tuple[int, int, int, int]:
    """Objects named, of these in the image, of these imagined, and objects in the image."""
    named = parser.objects([response])
    return len(named), len(named & image.truth), len(named & image.hallucination), len(image.truth)


def pooled_counts(response: str, image: AmberImage, parser: ObjectParser) -> tuple[int, int, int, int, int, int]:
    """Mentions, hallucinated ones, words of the truth covered, of the truth, imagined words that came up, annotated."""
    mentions = [mention.category for mention in parser.mentions(response)]
    named = set(mentions)
    wrong = sum(name not in image.truth for name in mentions)
    covered, imagined = len(named & image.truth), len(named & image.hallucination)
    return len(mentions), wrong, covered, len(image.truth), imagined, len(image.hallucination)


def pooled_rates(totals: Float[np.ndarray, "*resample 7"], n: int) -> dict[str, np.ndarray]:
    """CHAIR, Cover, Hal and Cog as the script has them, from sums of `pooled_counts` and of whether one is wrong."""
    mentions, wrong, covered, true, imagined, annotated, bad = np.moveaxis(np.asarray(totals, dtype=float), -1, 0)
    shares = {"chair": (wrong, mentions), "cover": (covered, true), "hal": (bad, n), "cog": (imagined, annotated)}
    return {name: np.asarray(100 * part / np.maximum(whole, 1)) for name, (part, whole) in shares.items()}


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
