"""A text is followed with the tokens that the model would have written, on every family and on real tokenizers."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from real_tokenizers import REAL
from test_families import PROMPTS, picture
from zoo import TEXT, VISION, build

from interp.models import load
from interp.models.encoding import answer, frame_of

CAPTIONS = [
    "A fork and a knife lie on the dining table.",
    "The image shows two potted plants, a cake (half-eaten) and 3 pizzas. There's a cow, too!",
    "The picture\n\nhas paragraphs: a teddy bear; a stop sign.",
    "Un café, naïve façade — “quoted”.",
]


@lru_cache(maxsize=1)
def real(name: str) -> Any:
    return REAL[name]()


def test_the_models_own_captions_give_back_their_tokens(model, pictures):
    inputs = model.inputs(pictures, PROMPTS[0])
    written = model.generate(inputs)
    for text, tokens in zip(written.texts, written.tokens, strict=True):
        found = model.answer(text, inputs.texts[0])
        assert found.ids.tolist() == tokens.tolist()
        assert found.doubt is None
        assert model.encode(text).tolist() == tokens.tolist(), "whatever the prompt"


@pytest.mark.parametrize("name", [*VISION, *TEXT])
def test_what_a_family_writes_is_read_back(name):
    lvlm = load(*build(name))
    inputs = lvlm.inputs([picture(0)] if name in VISION else None, PROMPTS[0])
    frame = frame_of(lvlm.processor, lvlm.family.has_vision, lvlm.family.prompt, lvlm.family.prompt_end)
    said = frame.lead if frame.lead is not None else pytest.fail("the template renders answers")
    letters = lvlm.tokenizer("abcdefghij ,.", add_special_tokens=False).input_ids
    begin = lvlm.tokenizer(said, add_special_tokens=False).input_ids

    starts: list[int] = []  # of a Q-Former's model: it generates inside its decoder

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        starts.append(len(ids))
        step = len(ids) - starts[0]
        if step < len(begin):
            return [begin[step]]
        return letters[:10] if step in (len(begin), 11) else letters

    (tokens,), (text,) = _generated(lvlm, inputs, allowed)
    found = lvlm.answer(text, inputs.texts[0])
    assert found.ids.tolist() == tokens.tolist()
    assert found.doubt is None


def _generated(lvlm: Any, inputs: Any, allowed: Any) -> Any:
    found = lvlm.generate(inputs, max_new_tokens=12, prefix_allowed_tokens_fn=allowed)
    return found.tokens, found.texts


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("caption", CAPTIONS, ids=range(len(CAPTIONS)))
def test_real_tokenizers(name, caption):
    """Word by word (what a model writes one after the other) equals what is read back from the whole."""
    tokenizer = real(name)
    frame = frame_of(tokenizer, False, None, "")
    assert frame.lead == ("" if name in ("tekken", "smollm2") else " ")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True)
    prompt = tokenizer.decode(prompt["input_ids"] if not isinstance(prompt, list) else prompt)
    assert prompt.endswith(frame.tail)
    found = answer(tokenizer, prompt, frame.lead, caption)
    assert found.doubt is None
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    assert tokenizer.decode([*before, *found.ids.tolist()]) == prompt + frame.lead + caption
    first = caption.split()[0]
    alone = tokenizer("x" + f" {first}" * 2, add_special_tokens=False).input_ids  # a word after a space
    if frame.lead == " ":
        assert tokenizer.decode(alone).endswith(first)
        n = next(n for n in range(1, len(alone)) if tokenizer.decode(alone[-n:]).strip() == first)
        assert found.ids.tolist()[:n] == alone[-n:]
    else:
        assert tokenizer.decode(found.ids[:1]) == caption[: len(tokenizer.decode(found.ids[:1]))], "no space before it"


def test_what_a_template_leaves_open_is_said():
    lvlm = load(*build("llava"))
    lvlm.processor.chat_template = "{% for m in messages %}Q: {{ m['content'][-1]['text'] }} A:{% endfor %}"
    assert "does not render answers" in str(lvlm.answer("a cat").doubt)
    with pytest.raises(ValueError, match="an empty one"):
        lvlm.answer("  ")


def test_a_text_that_grows_together_with_the_prompt():
    tokenizer = real("llama")
    found = answer(tokenizer, "USER: hi ASSISTANT: ", " ", "A fork")
    before = tokenizer("USER: hi ASSISTANT: ", add_special_tokens=False).input_ids
    assert tokenizer.decode([*before, *found.ids.tolist()]) == "USER: hi ASSISTANT: A fork"
    assert found.doubt is not None
    assert "joins its beginning" in found.doubt
