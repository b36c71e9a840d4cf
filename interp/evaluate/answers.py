"""Reading yes/no answers: as a reader would, or by the rule of POPE's customary script.

The script (Li et al., EMNLP 2023, `evaluate.py`) calls an answer no if "No", "no" or "not" is among the words before
the first full stop, and yes otherwise: "NO", "No!", "**No**" and "no:" are yes to it, and so is an empty answer.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, get_args

Rule = Literal["reader", "script"]
"""How answers are read; `script` is comparable with published figures."""

_CLAUSE = re.compile(r"[^.!?;:,\n]+\??")
_JOINED = re.compile(r"\b(?:but|and|that|which|with|although|though|because)\b")
_ECHO = re.compile(r"\byes\s*(?:or|/)\s*no\b")
_UNSURE = re.compile(
    r"\b(?:unsure|unclear|uncertain|perhaps|maybe|possibly|might|unable|don't know|do not know)\b"
    r"|\bnot (?:\w+ )?(?:sure|certain|clear|possible|able)\b"
    r"|\b(?:cannot|can't|can not|hard to|difficult to|impossible to|not) (?:be )?"
    r"(?:tell|say|determine|confirm|answer|know|help|assist|provide|process|view|access)\b"
)
_YES = re.compile(r"\b(?:yes|yeah|yep|yup)\b")
_NO = re.compile(r"\b(?:no|nope|nah|not|cannot|none)\b|n't\b|^\s*(?:nothing|never|false|incorrect|negative)\b")
_STATED = re.compile(
    r"\bthere(?:'s| is| are| was| were| appears| seems)\b|\b(?:i|we|you) (?:can |do )?(?:see|spot|find)\b"
    r"|\b(?:image|picture|photo|scene|it)(?:'s| (?:does|shows|contains|has|features|depicts|includes|is))\b"
    r"|\b(?:is|are) (?:in|on|present|visible|there|indeed|shown|depicted)\b"
    r"|^\s*(?:true|correct|indeed|absolutely|affirmative|certainly|definitely|sure|of course|right)\b"
)


def says_yes(answer: str) -> bool:
    """By the customary script's rule: "No", "no" or "not" before the first full stop means no, anything else yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def understood(answer: str) -> bool | None:
    """As a reader would: the first clause that says yes or no, or states one or the other; None if none does.

    Case, marks and emphasis do not matter, questions are passed over, and an answer that says it cannot tell says
    neither.  English only.
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"[*_`#\"()\[\]<>]", " ", _ECHO.sub(" ", text))
    for whole in _CLAUSE.findall(text):
        if whole.endswith("?"):
            continue
        for clause in _JOINED.split(whole):
            said = _said(clause)
            if said != "nothing":
                return {"yes": True, "no": False}.get(said)
    return None


def _said(clause: str) -> str:
    """What a clause says: yes, no, unsure, or nothing."""
    yes, no = _YES.search(clause), _NO.search(clause)
    if yes and not (no and no.start() < yes.start()):
        return "yes"
    if _UNSURE.search(clause):
        return "unsure"
    if no:
        return "no"
    return "yes" if _STATED.search(clause) else "nothing"


def read_answer(answer: str, rule: Rule) -> bool | None:
    """Whether an answer says yes by a rule; None if it says neither."""
    if rule not in get_args(Rule):
        raise ValueError(f"answers are read by the rule {' or '.join(get_args(Rule))}, got {rule!r}")
    return understood(answer) if rule == "reader" else says_yes(answer)


def answer_tokens(
    encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> tuple[list[int], list[int]]:
    """The tokens with which yes and no may begin, for answers read from logits.

    A token that is only the space before a word tells nothing.  ValueError if one has none, or both have the same.
    """
    found: list[set[int]] = []
    for word in ("Yes", "No"):
        ids = [list(encode(form)) for form in (word, f" {word}", word.lower(), f" {word.lower()}")]
        found.append({i[0] for i in ids if i and decode(i[:1]).strip()})
    yes, no = found
    if not yes or not no or yes & no:
        raise ValueError(
            f"the first tokens of Yes {sorted(yes)} and No {sorted(no)} do not tell the two apart with this tokenizer, "
            "so answers cannot be read from logits; read them from the text"
        )
    return sorted(yes), sorted(no)
