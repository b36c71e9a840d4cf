"""Finding the objects a text names: synonyms mapped to the COCO-80 categories, with their place in the text."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import inflect

from interp.evaluate.reading import read_text

COCO_SYNONYMS = files("interp.evaluate") / "synonyms.txt"
_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE)  # "man's" is "man" and "s"
_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]
_VEHICLES = ["train", "airplane", "bus", "boat", "car", "truck"]


@dataclass(frozen=True)
class Mention:
    """An object named in a text: its category, and where the words stand, `text[start:end]`."""

    category: str
    start: int
    end: int


def read_synonyms(text: str) -> dict[str, str]:
    """Synonym -> category from the customary format: a category a line, comma-separated, the first word its name."""
    table: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        names = [name.strip().lower() for name in line.split(",") if name.strip()]
        for name in names:
            if not _WORD.search(name):
                raise ValueError(f"line {number} of the synonyms: {name!r} has no letter a to z and no digit to find")
            if table.setdefault(name, names[0]) != names[0]:
                raise ValueError(
                    f"line {number} of the synonyms gives {name!r} to {names[0]!r}, "
                    f"but it belongs to {table[name]!r}; remove one of the two"
                )
    if not table:
        raise ValueError("expected synonyms, one category a line and comma-separated, got no line with a name")
    return table


class ObjectParser:
    """Maps the words of a text to categories.

    A word counts as itself if the table has it, otherwise as its singular; the longest synonym wins; what
    only describes another object ("baby elephant", "passenger train") counts with it.
    """

    def __init__(self, synonyms: dict[str, str]) -> None:
        self.categories = tuple(dict.fromkeys(synonyms.values()))
        self._table = {tuple(w.lower() for w in _WORD.findall(name)): category for name, category in synonyms.items()}
        for kinds, adjectives in ((_ANIMALS, ("baby", "adult")), (_VEHICLES, ("passenger",))):
            described = [(words, c) for words, c in self._table.items() if c in kinds]
            self._table |= {(adjective, *words): c for words, c in described for adjective in adjectives}
        self.signature = json.dumps(sorted(synonyms.items()))
        self._longest = max(len(words) for words in self._table)
        self._known = {word for words in self._table for word in words}
        self._singular = lru_cache(maxsize=100_000)(self._to_singular)
        self._inflect = inflect.engine()

    @classmethod
    def coco(cls, synonyms: Path | None = None) -> "ObjectParser":
        """The parser of the bundled COCO-80 table, or of a synonyms file."""
        if synonyms is None:
            return cls(read_synonyms(COCO_SYNONYMS.read_text(encoding="utf-8")))
        try:
            return cls(read_synonyms(read_text(synonyms)))
        except ValueError as error:
            raise ValueError(f"{synonyms}: {error}") from error

    def _to_singular(self, word: str) -> str:
        if word in self._known:  # "bus" must not become "bu"
            return word
        return str(self._inflect.singular_noun(word) or word)  # pyright: ignore[reportArgumentType]

    def mentions(self, text: str) -> list[Mention]:
        """Every mention of a category in order, repeats included."""
        words = list(_WORD.finditer(text))
        forms = [self._singular(word[0].lower()) for word in words]
        found: list[Mention] = []
        at = 0
        while at < len(words):
            for n in range(min(self._longest, len(words) - at), 0, -1):
                category = self._table.get(tuple(forms[at : at + n]))
                if category is not None:
                    found.append(Mention(category, words[at].start(), words[at + n - 1].end()))
                    at += n
                    break
            else:
                at += 1
        if any(m.category == "toilet" for m in found):  # the seat of a toilet is not a chair
            found = [m for m in found if text[m.start : m.end].lower() not in ("seat", "seats")]
        return found

    def renamed(self, text: str, old: str, new: str) -> str:
        """The text with the name of another category, `new`, wherever it names the category `old`.

        A plural stays a plural, and a or an before the name, and a capital letter, are as they have to be.
        """
        for m in reversed([m for m in self.mentions(text) if m.category == old]):
            words, before = text[m.start : m.end], text[: m.start]
            last = _WORD.findall(words)[-1].lower()
            plural = self._singular(last) != last
            name = str(self._inflect.plural(new)) if plural else new  # pyright: ignore[reportArgumentType]
            name = name[0].upper() + name[1:] if words[0].isupper() else name
            right = "an" if new[0] in "aeiou" else "a"
            before = re.sub(r"\b([Aa])n?(\s+)$", lambda found, n=right[1:]: f"{found[1]}{n}{found[2]}", before)
            text = before + name + text[m.end :]
        return text

    def objects(self, texts: Iterable[str]) -> frozenset[str]:
        """The categories named in any of the texts: reference captions, for example."""
        return frozenset(m.category for text in texts for m in self.mentions(text))
