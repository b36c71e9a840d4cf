"""The token ids of a text as a model would have written it: after its prompt, as the chat template goes on."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """A text as the continuation of a prompt.

    `ids` are its tokens.  `doubt` is None where the template and the tokenizer leave one reading; otherwise it says
    what they leave open: the model may then have written the same text with other tokens.
    """

    ids: Int[Tensor, " token"]
    doubt: str | None = None


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around an answer: `tail` ends the prompt, `lead` stands before the answer's text.

    `lead` is None where the template does not render answers.
    """

    tail: str
    lead: str | None


def frame_of(processor: Any, has_vision: bool, prompt: str | None, prompt_end: str) -> Frame:
    """Read the frame off a processor's chat template, or off a family's `prompt` where there is none."""
    question, said = "QUESTION", "ANSWER"
    if not getattr(processor, "chat_template", None):
        tail = (prompt or "{text}").format(images="", text=question).rpartition(question)[2] + prompt_end
        return Frame(tail, "" if tail[-1:].isspace() else " ")

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if has_vision else text}

    asked = processor.apply_chat_template([turn("user", question)], add_generation_prompt=True, tokenize=False)
    tail = asked.rpartition(question)[2]
    whole = processor.apply_chat_template([turn("user", question), turn("assistant", said)], tokenize=False)
    lead = whole[len(asked) :].partition(said)[0] if whole.startswith(asked) and said in whole[len(asked) :] else None
    return Frame(tail, lead if lead is None or not lead.strip() else None)


def answer(tokenizer: Any, prompt: str, lead: str | None, text: str) -> Answer:
    """The tokens of `text` after `prompt`: those of both together, less those of the prompt alone.

    Raises ValueError if the text is empty.
    """
    text = text.strip()
    if not text:
        raise ValueError("expected a text to follow, got an empty one")
    open_lead = lead is None
    if lead is None or prompt[-1:].isspace():
        lead = "" if prompt[-1:].isspace() else " "

    def ids(written: str) -> list[int]:
        return tokenizer(written, add_special_tokens=False).input_ids

    def doubt() -> str | None:
        back = tokenizer.decode(found, skip_special_tokens=True).strip()
        if back != text:
            return f"its tokens read {back!r}"
        return "the chat template does not render answers, so how one begins is a guess" if open_lead else None

    before, whole = ids(prompt), ids(prompt + lead + text)
    if whole[: len(before)] == before:
        found = whole[len(before) :]
        return Answer(torch.tensor(found), doubt())
    # the text grows together with the end of the prompt, which the model had to take as it was
    for context in (lead, "", "\n", "a"):
        first, both = ids(context), ids(context + text)
        found = both if context == lead else both[len(first) :]
        fits = context == lead or both[: len(first)] == first
        if fits and tokenizer.decode([*before, *found]) == tokenizer.decode(whole):
            return Answer(torch.tensor(found), "the tokenizer joins its beginning with the end of the prompt")
    raise ValueError(
        f"no tokens after the prompt give {text[:40]!r}: the tokenizer joins it with {prompt[-10:]!r}; "
        "take the tokens that the model wrote (--run DIR --image-id N)"
    )
