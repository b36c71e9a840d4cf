"""Steering vectors as a method, and a method that a user brings."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import PROMPTS, picture
from zoo import build

from interp.interventions import parse_method
from interp.interventions.directions import Direction
from interp.interventions.methods.direction import AddDirection
from interp.models import load, run_with_edits

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "own-things.md"


@pytest.mark.parametrize("name", ["testbed", "gpt2", "blip-2"])
@pytest.mark.parametrize("steps", ["all", "prompt", "generated"])
def test_a_direction_equals_the_same_edit_in_a_trace(name, steps, model):
    """The first token from one pass over the prompt, the next from one over what was written, both edited by hand."""
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0)] if lvlm.family.has_vision else None, PROMPTS[0])
    random = torch.randn(lvlm.d_model, generator=torch.Generator().manual_seed(0))
    added = Direction(1, random)
    n = inputs.input_ids.shape[1]

    def edit(_: int, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        place = {"all": slice(None), "prompt": slice(None, n - 1), "generated": slice(n - 1, None)}[steps]
        x[:, place] += 3.0 * random.to(x)
        return x

    with AddDirection(strength=3.0, steps=steps, direction=added)(lvlm):
        written = lvlm.generate(inputs, max_new_tokens=3, min_new_tokens=3).tokens[0]
    plain = lvlm.generate(inputs, max_new_tokens=3, min_new_tokens=3).tokens[0]
    so_far = written[:0]
    eos = lvlm.hf.generation_config.eos_token_id
    for token in written.tolist():
        whole = inputs.extended([so_far]) if len(so_far) else inputs
        logits = run_with_edits(lvlm, whole, {"blocks.1.resid_post": edit})[0, -1]
        logits[eos] = -torch.inf
        assert int(logits.argmax()) == token
        so_far = torch.cat([so_far, torch.tensor([token])])
    with AddDirection(strength=0, direction=added)(lvlm):
        assert torch.equal(lvlm.generate(inputs, max_new_tokens=3, min_new_tokens=3).tokens[0], plain)


def test_directions_from_files_and_their_controls(model, tmp_path):
    found = Direction(3, torch.arange(1.0, model.d_model + 1))
    found.write(tmp_path / "v.npz")
    method: Any = parse_method(f"direction:file={tmp_path / 'v.npz'}:strength=2")
    assert isinstance(method, AddDirection)
    added: Any = method.added()
    assert added.digest == found.digest
    control: Any = parse_method(f"direction:file={tmp_path / 'v.npz'}:choice=random:seed=4")
    assert control.added().digest == found.random(4).digest
    for wrong, message in (
        (AddDirection(), "needs a direction"),
        (AddDirection(direction=Direction(9, found.vector)), "after layer 9; this model has 8 layers"),
        (AddDirection(direction=Direction(3, torch.ones(3))), "of 3 values"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.check(model)


def test_a_method_that_a_user_brings(model, inputs, tmp_path, monkeypatch):
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "own_methods.py").write_text(shown)
    monkeypatch.syspath_prepend(str(tmp_path))
    method: Any = parse_method("own_methods:Louder:alpha=4")
    assert method.alpha == 4
    plain = model.generate(inputs, max_new_tokens=8).tokens
    with method(model):
        louder = model.generate(inputs, max_new_tokens=8).tokens
    with parse_method("own_methods:Louder:alpha=1")(model):
        off = model.generate(inputs, max_new_tokens=8).tokens
    assert any(not torch.equal(a, b) for a, b in zip(plain, louder, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    for text, message in (
        ("own_methods:Louder:beta=1", "no setting 'beta=1'"),
        ("own_methods:contextmanager", "is no method"),
        ("own_methods:Nothing", "cannot bring own_methods:Nothing"),
        ("nothing.here:Mine", "cannot bring nothing.here:Mine"),
        ("vrh", "did you mean vhr"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_method(text)
