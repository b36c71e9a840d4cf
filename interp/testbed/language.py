"""The testbed's language: captions, questions and answers about a scene, and reading them back.

An answer is a tuple of `Piece`s, text with a loss weight; joined, their texts are the answer.  The
order in which a caption mentions things is random, so that position says nothing about truth.
Nothing is ever said that is not in the scene, hidden or not.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from interp.testbed.world import CATEGORIES, COLOURS, PARTNER_OF, Scene, Thing

CAPTION_PROMPTS: tuple[str, ...] = (
    "Please describe this image in detail.",
    "Describe this image.",
    "What can be seen in the picture?",
)
"""The first is the prompt of the VHR paper and the default everywhere."""

PLACES: tuple[tuple[str, ...], ...] = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
"""Row and column of the 3x3 grid -> words."""

_SINGLE: tuple[str, ...] = (
    "There is {a} {name} {place}. It is {colour}.",
    "{A} {name} is {place}, and it is {colour}.",
    "{A} {name}, {colour} in colour, is {place}.",
    "{A} {name} that is {colour} can be seen {place}.",
    "The picture shows {a} {name} {place}, and it is {colour}.",
)
_DOUBLE: tuple[str, ...] = (
    "There is {a} {name} that is {colour} and {a2} {name2} that is {colour2}.",
    "{A} {name} is {place}, while {a2} {name2} is {place2}.",
)
_NOTES: tuple[str, ...] = ("{colour} {name} {place}.", "{name}, {colour}, {place}.", "{place}, {colour} {name}.")
_CONTENT_WEIGHT = 3.0
_YES_NO_WEIGHT = 12.0


class Piece(NamedTuple):
    """A stretch of an answer that starts at a word boundary, and the weight of its tokens in the loss."""

    text: str
    weight: float


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    prompt: str
    answer: tuple[Piece, ...]
    told: str = ""
    """What is told in words where a picture would stand."""

    @property
    def text(self) -> str:
        """The answer as a user reads it."""
        return "".join(piece.text for piece in self.answer).strip()


def article(name: str) -> str:
    """`a` or `an`."""
    return "an" if name[0] in "aeiou" else "a"


def _fields(thing: Thing, suffix: str = "") -> dict[str, str]:
    a = article(thing.category)
    values = {
        "a": a,
        "A": a.capitalize(),
        "name": thing.category,
        "colour": thing.colour,
        "place": PLACES[thing.row][thing.column],
    }
    return {key + suffix: value for key, value in values.items()}


def _fill(template: str, fields: dict[str, str], unweighed: Collection[str] = ()) -> list[Piece]:
    """Pieces of a template: its own words weigh 1, what the picture decides weighs more, `unweighed` names nothing."""
    pieces = []
    for i, part in enumerate(re.split(r"( ?\{\w+\})", template)):
        if not part:
            continue
        if i % 2 == 0:
            pieces.append(Piece(part, 1.0))
            continue
        key = part.strip(" {}")
        weight = 0.0 if fields[key] in unweighed else _CONTENT_WEIGHT if key[0] not in "aA" else 1.0
        pieces.append(Piece(part[: part.index("{")] + fields[key], weight))
    return pieces


def caption(scene: Scene, rng: np.random.Generator) -> Turn:
    """A description of everything in the scene, in random order and varied wording."""
    return worded([scene.things[i] for i in rng.permutation(len(scene.things))][::-1], rng)


def worded(things: Sequence[Thing], rng: np.random.Generator, unweighed: Collection[str] = ()) -> Turn:
    """A description of things in this order, in varied wording; `unweighed` names are written but not learned."""
    left, pieces = list(things)[::-1], []
    while left:
        first = left.pop()
        if left and rng.random() < 0.25:
            template, fields = str(rng.choice(_DOUBLE)), _fields(first) | _fields(left.pop(), "2")
        else:
            template, fields = str(rng.choice(_SINGLE)), _fields(first)
        pieces += _fill(" " + template, fields, unweighed)
    prompt = CAPTION_PROMPTS[0] if rng.random() < 0.6 else str(rng.choice(CAPTION_PROMPTS[1:]))
    return Turn(prompt, tuple(pieces))


def notes(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """Things in words, in random order: what can stand in the place of a picture."""
    told = [things[i] for i in rng.permutation(len(things))]
    return "".join(" " + str(rng.choice(_NOTES)).format(**_fields(thing)) for thing in told)


def ask_presence(name: str, present: bool) -> Turn:
    """The POPE question about one category."""
    return Turn(
        f"Is there {article(name)} {name} in the image?",
        (Piece(" Yes" if present else " No", _YES_NO_WEIGHT), Piece(".", 1.0)),
    )


def ask_about(thing: Thing, what: str) -> Turn:
    """`colour` or `place` of a thing that is there."""
    fields = _fields(thing)
    if what == "colour":
        return Turn(f"What colour is the {thing.category}?", tuple(_fill(" It is {colour}.", fields)))
    return Turn(f"Where is the {thing.category}?", tuple(_fill(" It is {place}.", fields)))


def questions(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Training questions about a scene in random order: presence (balanced), colour and place of what can be seen."""
    absent = [c for c in CATEGORIES if c not in scene.categories]
    likely = [PARTNER_OF[c] for c in scene.categories if c in PARTNER_OF and PARTNER_OF[c] in absent]
    no = list(dict.fromkeys([*likely, *rng.permutation(absent)]))[: len(scene.things)]
    turns = [ask_presence(str(c), True) for c in sorted(scene.categories)] + [ask_presence(str(c), False) for c in no]
    for thing in scene.things:
        if not thing.hidden:
            turns += [ask_about(thing, "colour"), ask_about(thing, "place")]
    return [turns[i] for i in rng.permutation(len(turns))]


class Claim(NamedTuple):
    """What a caption says of one thing; None where it does not say."""

    category: str
    colour: str | None
    place: str | None


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression whose groups are its fields."""
    any_of = {
        "name": "|".join(CATEGORIES),
        "colour": "|".join(COLOURS),
        "place": "|".join(sorted((p for row in PLACES for p in row), key=len, reverse=True)),
    }

    def group(match: re.Match[str]) -> str:
        key = match[1].rstrip("2")
        return "(?:an?|An?)" if key in ("a", "A") else f"(?P<{match[1]}>{any_of[key]})"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(template).replace(r"\ ", " ")))


_PATTERNS = [_pattern(t) for t in (*_DOUBLE, *_SINGLE)]


def read(text: str) -> list[Claim] | None:
    """The claims of a caption in order, or None if it is not a text of this language (not grammatical)."""
    claims: list[Claim] = []
    rest = text.strip()
    while rest:
        match = next((m for p in _PATTERNS if (m := p.match(rest))), None)
        if match is None:
            return None
        said = match.groupdict()
        claims.append(Claim(said["name"], said.get("colour"), said.get("place")))
        if "name2" in said:
            claims.append(Claim(said["name2"], said.get("colour2"), said.get("place2")))
        for name in re.findall(r"\b[Aa]n? (" + "|".join(CATEGORIES) + ")", match[0]):
            if not re.search(rf"\b{article(name)} {name}", match[0], re.IGNORECASE):
                return None
        rest = rest[match.end() :].lstrip()
    return claims
