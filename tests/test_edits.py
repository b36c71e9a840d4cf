"""Editing heads: each operation equals a traced edit, sets by name, combinations, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from test_families import PROMPTS, picture
from zoo import build

from interp.interventions import EditHeads, parse_method
from interp.interventions.primitives.head_sets import head_set
from interp.models import LVLM, Head, Inputs, image_free, load, read, run_with_edits

HEADS = "L0H1+L2H3+L2H0"
SHAPE = (8, 8)


@pytest.fixture
def ranking(tmp_path) -> str:
    """A file as `interp causal` writes it, for the testbed."""
    random = np.random.default_rng(0)
    path = tmp_path / "heads.npz"
    vhd = np.arange(64.0).reshape(8, 8)
    np.savez(path, allow_pickle=False, vhd=vhd, causal=-vhd, mean=random.normal(size=(8, 8, 24)).astype(np.float32))
    return str(path)


def by_trace(model: LVLM, inputs: Inputs, edit: EditHeads) -> torch.Tensor:
    """The logits of the next token, edited in a trace."""
    chosen = edit.chosen(model)
    other: Any = None
    if edit.op in ("image_free", "resample"):
        source = image_free(model, inputs) if edit.op == "image_free" else None
        if source is None:
            source = model.processed(inputs.pictures[1:] + inputs.pictures[:1], inputs.texts)
        other = read(model, source, "z")["z"][:, :, -1]

    def change(layer: int, z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for head in chosen:
            if head.layer != layer:
                continue
            at = slice(None) if edit.steps == "all" else slice(-1, None) if edit.steps == "generated" else slice(0, -1)
            if other is not None:
                z[:, -1, head.head] = other[:, layer, head.head]
            elif edit.op == "mean":
                z[:, at, head.head] = torch.from_numpy(np.load(edit.ranking)["mean"])[layer, head.head]
            else:
                z[:, at, head.head] *= edit.factor if edit.op == "scale" else 0.0
        return z

    return run_with_edits(model, inputs, {"z": change})[:, -1]


@pytest.mark.parametrize("steps", ["all", "prompt", "generated"])
@pytest.mark.parametrize("op", ["scale", "zero", "mean", "image_free", "resample"])
def test_native_edits_equal_traced_ones(op, steps, model, inputs, ranking):
    edit = EditHeads(heads=HEADS, op=op, steps=steps, ranking=ranking)
    expected = by_trace(model, inputs, edit)
    with edit(model):
        found = model.generate(inputs, max_new_tokens=1)
        with edit.steer(model, inputs):
            logits = model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    plain = model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits[:, -1]
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert [t[:1].tolist() for t in found.tokens] == [[i] for i in expected.argmax(-1).tolist()]


@pytest.mark.parametrize("op", ["scale", "zero", "image_free", "resample"])
@pytest.mark.parametrize("name", ["testbed", "qwen2.5-vl", "gemma3"])
def test_step_by_step_equals_at_once(op, name, model):
    """What is generated with an edit is what the edited model finds most probable, teacher-forced in one piece."""
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1)], PROMPTS)
    edit = EditHeads(heads="L0H1+L2H3", op=op, steps="generated", factor=3.0)
    with edit(lvlm):
        tokens = lvlm.generate(inputs, max_new_tokens=6, min_new_tokens=6).tokens
    whole = inputs.extended(tokens)
    with edit.steer(lvlm, inputs), torch.no_grad():
        logits = lvlm.hf(**whole.kwargs(), use_cache=False, logits_to_keep=7).logits[:, :-1]
    eos = lvlm.hf.generation_config.eos_token_id
    logits[..., eos] = -torch.inf
    assert torch.equal(logits.argmax(-1), torch.stack(tokens))


def test_sets_by_name(ranking):
    assert head_set("L1H2+L0H3+L1H2", SHAPE) == (Head(1, 2), Head(0, 3))
    assert head_set("", SHAPE) == ()
    assert head_set("top2", SHAPE, ranking) == (Head(7, 6), Head(7, 7))
    assert head_set("bottom2", SHAPE, ranking) == (Head(0, 0), Head(0, 1))
    assert head_set("top2", SHAPE, ranking, by="causal") == (Head(0, 0), Head(0, 1))
    assert head_set("top", SHAPE, ranking, share=2 / 64) == (Head(7, 6), Head(7, 7))
    assert len(head_set("random10%", SHAPE)) == len(head_set("random", SHAPE, share=0.1)) == 6
    assert head_set("random10%", SHAPE, seed=1) == head_set("random10%", SHAPE, seed=1)
    assert head_set("random10%", SHAPE, seed=1) != head_set("random10%", SHAPE, seed=2)


def test_edits_combine_unless_they_contradict(model, inputs):
    with EditHeads(heads="L1H1", factor=2.0)(model), EditHeads(heads="L1H1", factor=1.5)(model):
        together = model.generate(inputs, max_new_tokens=12).texts
    with EditHeads(heads="L1H1", factor=3.0)(model):
        assert model.generate(inputs, max_new_tokens=12).texts == together
    with EditHeads(heads="L1H1+L2H2", op="zero")(model):
        refused = pytest.raises(ValueError, match=r"contradict on L2H2 \(zero and scale\)")
        with refused, EditHeads(heads="L2H2+L3H3")(model):
            pass
        with EditHeads(heads="L3H3")(model), parse_method("vcd")(model):
            assert model.generate(inputs, max_new_tokens=4).texts
    plain = model.generate(inputs, max_new_tokens=12).texts
    with EditHeads(heads="L2H2", op="zero")(model):
        pass
    assert model.generate(inputs, max_new_tokens=12).texts == plain, "nothing is left behind"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edit:op=double", "op of EditHeads is one of scale"),
        ("edit:heads=H3L1", "a head is written like"),
        ("edit:heads=top:share=2", "share of EditHeads is a number of at least 0 and at most 1"),
        ("edit:steps=last", "steps of EditHeads is one of all"),
    ],
)
def test_wrong_edits_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_edits_that_do_not_fit_the_model_are_refused(model, inputs, ranking, tmp_path):
    with pytest.raises(ValueError, match="layers 0 to 7 with heads 0 to 7"), EditHeads(heads="L9H0")(model):
        pass
    with pytest.raises(ValueError, match="there is none at"):
        head_set("top2", SHAPE, "no.npz")
    with pytest.raises(ValueError, match="expected ranking=FILE"), EditHeads(heads="top2")(model):
        pass
    with pytest.raises(ValueError, match="ranks heads by vhd, causal"):
        head_set("top2", SHAPE, ranking, by="beauty")
    with pytest.raises(ValueError, match="this model has"):
        head_set("top2", (4, 4), ranking)
    for none in ("random65", "random0", "random0.1%"):
        with pytest.raises(ValueError, match=f"this model has 64 heads, got {none}"):
            head_set(none, SHAPE)
    with pytest.raises(ValueError, match=r"a number of heads is whole"):
        head_set("top1.5", SHAPE, ranking)
    with pytest.raises(ValueError, match="expected ranking=FILE"):
        EditHeads(heads="L1H1", op="mean").check(model)
    one = model.inputs([inputs.pictures[0]], inputs.texts[0], chat=False)
    with EditHeads(heads=HEADS, op="resample")(model), pytest.raises(ValueError, match="at least two rows"):
        model.generate(one, max_new_tokens=2)
    blip = load(*build("blip-2"))
    with pytest.raises(ValueError, match="cannot follow what a blip-2"):
        EditHeads(heads="L0H1", op="image_free").check(blip)
    with EditHeads(heads=HEADS, op="image_free")(model), pytest.raises(ValueError, match="cannot follow beams"):
        model.generate(inputs, num_beams=2, max_new_tokens=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        (np.array(["L0H1"]), "of numbers, got vhd"),
        (np.array([object()]), "no plain arrays"),
    ],
)
def test_files_that_are_no_ranking_are_told(content, message, tmp_path):
    path = tmp_path / "heads.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, allow_pickle=True, vhd=content)
    with pytest.raises(ValueError, match=message):
        head_set("top2", SHAPE, str(path))


def test_a_single_array_is_no_ranking_and_a_changed_file_is_read_anew(ranking, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((8, 8)))
    with pytest.raises(ValueError, match="got a single array"):
        head_set("top2", SHAPE, str(tmp_path / "one.npy"))
    assert head_set("top1", SHAPE, ranking) == (Head(7, 7),)
    np.savez(ranking, allow_pickle=False, vhd=-np.arange(64.0).reshape(8, 8))
    assert head_set("top1", SHAPE, ranking) == (Head(0, 0),)


def test_without_a_cache_the_other_stream_is_read_anew(model, inputs):
    with EditHeads(heads=HEADS, op="image_free")(model):
        expected = model.generate(inputs, max_new_tokens=4).texts
        assert model.generate(inputs, max_new_tokens=4, use_cache=False).texts == expected
