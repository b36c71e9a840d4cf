"""Every family, on small models of the official classes with random weights."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.utils.import_utils import is_torchvision_available
from zoo import TEXT, VISION, build

from interp.interventions import VHR, parse_method
from interp.interventions.methods import fastv
from interp.interventions.primitives import rereading
from interp.interventions.primitives.packed_prompt import PackedPrompt
from interp.metrics.vhd import head_divergence
from interp.models import FAMILIES, IMAGE_FREE, LVLM, Inputs, diagnose, image_free, load, read
from interp.models.compat import attention_backend
from interp.models.layout import layout
from interp.trace.divergence import token_vhd, vhd

PROMPTS = ["Please describe this image in detail.", "Is there a fork in the image?"]
NEEDS_TORCHVISION = {"llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm", "mistral3"}
"""Families whose processors transformers does not load from files without torchvision."""
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-4}


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=list(VISION))
def lvlm(request) -> LVLM:
    return load(*build(request.param))


@pytest.fixture(scope="module", params=list(TEXT))
def text_model(request) -> LVLM:
    return load(*build(request.param))


@pytest.fixture
def batch(lvlm) -> Inputs:
    return lvlm.inputs([picture(0), picture(1, 40, 60)], PROMPTS)


def alone(model: LVLM, inputs: Inputs, row: int) -> Inputs:
    return model.inputs([inputs.pictures[row]] if inputs.pictures[row] else None, inputs.texts[row], chat=False)


def hooked(model: LVLM, inputs: Inputs) -> Tensor:
    """Head outputs by plain PyTorch hooks, `[batch, layer, token, head, d_head]`."""
    seen: list[Tensor] = []
    handles = [
        model.out_proj(i).register_forward_pre_hook(lambda _, args: seen.append(model.by_head(args[0])))
        for i in range(model.n_layers)
    ]
    with torch.no_grad():
        model.hf(**inputs.kwargs())
    for handle in handles:
        handle.remove()
    return torch.stack(seen, 1)


def test_every_family_is_in_the_zoo():
    assert {family.name for family in FAMILIES} == {*VISION, *TEXT}
    assert len(VISION) >= 10
    assert len(TEXT) >= 5


def test_the_doctor_finds_nothing_wrong(lvlm):
    diagnosis = diagnose(lvlm)
    assert diagnosis.healthy, str(diagnosis)


def test_captured_head_outputs_equal_a_plain_hook(lvlm, batch):
    assert torch.equal(read(lvlm, batch, "z")["z"], hooked(lvlm, batch))


def test_probabilities_equal_the_eager_backend(lvlm, batch):
    with torch.no_grad(), attention_backend(lvlm.decoder_configs, "eager"):
        out = lvlm.hf(**batch.kwargs(), output_attentions=True, return_dict=True)
        out = getattr(out, "language_model_outputs", None) or out
        found = read(lvlm, batch, "pattern")["pattern"]
    rows = batch.attention_mask.bool()
    expected = torch.stack(out.attentions, 1).permute(0, 3, 1, 2, 4)[rows]
    torch.testing.assert_close(found.permute(0, 3, 1, 2, 4)[rows], expected, rtol=0, atol=1e-6)
    found = read(lvlm, batch, "pattern")["pattern"]
    torch.testing.assert_close(found.permute(0, 3, 1, 2, 4)[rows], expected, rtol=0, atol=1e-4)


def test_rows_of_a_batch_equal_each_alone(lvlm, batch):
    for whole in (batch, image_free(lvlm, batch)):
        z = read(lvlm, whole, ["z", "logits"], positions=whole.last[:, None])
        written = lvlm.generate(whole, max_new_tokens=6, min_new_tokens=6)
        for row in range(2):
            one = alone(lvlm, batch, row)
            one = one if whole is batch else image_free(lvlm, one)
            expected = read(lvlm, one, ["z", "logits"], positions=one.last[:, None])
            for site in z:
                torch.testing.assert_close(z[site][row], expected[site][0], **CLOSE)
            assert torch.equal(lvlm.generate(one, max_new_tokens=6, min_new_tokens=6).tokens[0], written.tokens[row])


@pytest.mark.parametrize("how", IMAGE_FREE)
def test_a_paired_pass_equals_two_passes(lvlm, batch, how):
    other = image_free(lvlm, batch, how)
    with_image, without = (read(lvlm, x, "z", positions=x.last[:, None])["z"][:, :, 0] for x in (batch, other))
    torch.testing.assert_close(vhd(lvlm, batch, how), head_divergence(with_image, without), rtol=1e-3, atol=1e-4)
    assert vhd(lvlm, batch, how).max() > 1e-3


def test_the_image_free_prompt_remove_has_the_text_and_nothing_else(lvlm, batch):
    other = image_free(lvlm, batch)
    for row in range(2):
        kept = batch.attention_mask[row].bool() & ~batch.image_mask[row] & ~batch.frame_mask[row]
        assert torch.equal(other.input_ids[row][other.attention_mask[row].bool()], batch.input_ids[row][kept])
        prompt = lvlm.tokenizer.decode(other.input_ids[row], skip_special_tokens=True)
        assert PROMPTS[row] in prompt
    assert not any(other.pictures)


def test_the_image_free_prompt_mask_keeps_positions_and_hides_the_image(lvlm, batch):
    other = image_free(lvlm, batch, "mask")
    assert torch.equal(other.position_ids, batch.position_ids)
    pattern = read(lvlm, other, "pattern", positions=batch.last[:, None])["pattern"]
    for row in range(2):
        assert pattern[row][..., batch.image_mask[row]].max() == 0


@pytest.mark.parametrize("how", ["blank", "noise"])
def test_the_image_free_prompts_with_other_pixels_keep_the_text(lvlm, batch, how):
    other = image_free(lvlm, batch, how)
    assert torch.equal(other.input_ids, batch.input_ids)
    assert not torch.equal(other.pixels["pixel_values"], batch.pixels["pixel_values"])
    again = image_free(lvlm, batch, how).pixels["pixel_values"]
    assert torch.equal(other.pixels["pixel_values"], again), "noise comes from its seed"


def test_a_caption_traced_at_once_equals_step_by_step(lvlm, batch):
    captions = lvlm.generate(batch, max_new_tokens=4, min_new_tokens=4).tokens
    traces = token_vhd(lvlm, batch, captions)
    for row, caption in enumerate(captions):
        one = alone(lvlm, batch, row)
        for step in range(len(caption)):
            so_far = one.extended([caption[:step]]) if step else one
            torch.testing.assert_close(traces[row].vhd[step], vhd(lvlm, so_far)[0], rtol=1e-3, atol=1e-4)


def test_generation_follows_the_forward_pass(lvlm, batch):
    """Greedy tokens are the most probable ones of a teacher-forced pass over them: positions go on rightly."""
    written = lvlm.generate(batch, max_new_tokens=6, min_new_tokens=6).tokens
    logits = read(lvlm, batch.extended(written), "logits")["logits"][:, -7:-1]
    logits[..., lvlm.hf.generation_config.eos_token_id or []] = -torch.inf
    assert torch.equal(logits.argmax(-1), torch.stack(written))


def test_generation_without_the_effect_equals_greedy(lvlm, batch):
    greedy = lvlm.generate(batch, max_new_tokens=8).texts
    with VHR(alpha=1.0)(lvlm):
        assert lvlm.generate(batch, max_new_tokens=8).texts == greedy


def test_vhr_selects_and_steers(lvlm, batch):
    with VHR(alpha=4.0)(lvlm) as steered:
        lvlm.generate(batch, max_new_tokens=2)
    assert steered.heads[0].heads[:, 1:].any()
    for row in range(2):
        one = VHR(alpha=4.0).select(lvlm, alone(lvlm, batch, row))
        torch.testing.assert_close(one.vhd[0], steered.heads[0].vhd[row], rtol=1e-3, atol=1e-4)


def test_several_pictures_in_one_prompt(lvlm):
    rows = [[picture(0), picture(1, 40, 60)], [picture(2)]]
    if lvlm.family.name in ("blip-2", "instructblip"):
        with pytest.raises(ValueError, match=r"takes one picture a prompt, got 2"):
            lvlm.inputs(rows, PROMPTS)
        return
    inputs = lvlm.inputs(rows, PROMPTS)
    assert inputs.image_mask.any(1).all()
    together = vhd(lvlm, inputs)
    for row in range(2):
        torch.testing.assert_close(together[row], vhd(lvlm, alone(lvlm, inputs, row))[0], rtol=1e-3, atol=1e-4)
    swapped = lvlm.inputs([rows[0][::-1], rows[1]], PROMPTS)
    assert not torch.allclose(vhd(lvlm, swapped)[0], together[0], rtol=1e-3), "both pictures count"


SPOTS = [(0.28, 0.25), (0.75, 0.3), (0.3, 0.72), (0.7, 0.75), (0.5, 0.5)]


@pytest.fixture
def local(lvlm) -> Iterator[LVLM]:
    """The model with a vision tower whose tokens do not mix, so that each token knows its own place only."""
    mixes = re.compile(r"(vision|visual).*attn.*\.(out_proj|proj|o_proj|projection_layer)|(vision).*attention.*(proj)")
    saved = {name: p.detach().clone() for name, p in lvlm.hf.named_parameters() if mixes.search(name)}
    assert saved or lvlm.family.needs_pixels
    for name in saved:
        lvlm.hf.get_parameter(name).data.zero_()
    yield lvlm
    for name, weights in saved.items():
        lvlm.hf.get_parameter(name).data.copy_(weights)


@pytest.mark.parametrize("size", [(64, 48), (40, 60), (64, 64)])
def test_image_tokens_lie_where_the_layout_says(local, size):
    """A spot painted on a picture changes the features of the tokens there most, piece by piece."""
    plain = picture(0, *size)
    if local.family.layout is None:
        with pytest.raises(ValueError, match="have no places on the picture"):
            layout(local, local.inputs([plain], PROMPTS[0]))
        return

    def features(second: Image.Image) -> Tensor:
        inputs = local.inputs([[picture(3), second]], PROMPTS[0])
        return read(local, inputs, "blocks.0.hook_resid_pre")["blocks.0.hook_resid_pre"][0]

    inputs = local.inputs([[picture(3), plain]], PROMPTS[0])
    pieces = layout(local, inputs)
    assert len(pieces) == 2
    places = np.concatenate([piece.tokens.ravel() for pictures in pieces for piece in pictures])
    assert len(set(places)) == len(places)
    assert inputs.image_mask[0][torch.from_numpy(places)].all()
    before = features(plain)
    for x, y in SPOTS:
        spot, at = plain.copy(), (round(x * size[0]), round(y * size[1]))
        spot.paste((255, 0, 0), (at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3))
        moved = (features(spot) - before).norm(dim=-1)
        for piece in pieces[1]:
            left, top, right, bottom = piece.box
            if left < x < right and top < y < bottom:
                rows, columns = piece.tokens.shape
                row, column = np.unravel_index(int(moved[torch.from_numpy(piece.tokens)].argmax()), piece.tokens.shape)
                assert abs(column + 0.5 - (x - left) / (right - left) * columns) <= 1
                assert abs(row + 0.5 - (y - top) / (bottom - top) * rows) <= 1


def test_a_saved_model_loads_from_its_folder(lvlm, batch, tmp_path):
    lvlm.hf.save_pretrained(tmp_path)
    if lvlm.family.name in NEEDS_TORCHVISION:  # built without a processor of videos, it can be neither saved nor read
        again = load(tmp_path, lvlm.processor)
    else:
        lvlm.processor.save_pretrained(tmp_path)
        again = load(tmp_path)
    assert again.family == lvlm.family
    resized_by_torchvision = 2e-2 if is_torchvision_available() else 0.0  # a saved processor asks for it, the built not
    close: Any = {"rtol": resized_by_torchvision, "atol": resized_by_torchvision}
    torch.testing.assert_close(vhd(again, alone(again, batch, 0)), vhd(lvlm, alone(lvlm, batch, 0)), **close)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_says_so(tmp_path):
    model, processor = build("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    named = (tmp_path / "processor_config.json").read_text().replace("LlavaProcessor", "PixtralProcessor")
    (tmp_path / "processor_config.json").write_text(named)
    with pytest.raises(ValueError, match=r"not installed \(pip install 'lvlm-interp\[vision\]'\).*Torchvision"):
        load(tmp_path)


def test_a_text_model_is_read_and_edited_like_the_others(text_model):
    model = text_model
    assert diagnose(model).healthy
    inputs = model.inputs(None, PROMPTS)
    assert torch.equal(read(model, inputs, "z")["z"], hooked(model, inputs))
    last = read(model, inputs, ["z", "pattern"], positions=inputs.last[:, None])
    for row in range(2):
        one = alone(model, inputs, row)
        expected = read(model, one, ["z", "pattern"], positions=one.last[:, None])
        torch.testing.assert_close(last["z"][row], expected["z"][0], **CLOSE)
        n = one.input_ids.shape[1]
        torch.testing.assert_close(last["pattern"][row, ..., -n:], expected["pattern"][0], **CLOSE)
    with pytest.raises(ValueError, match="without"):
        vhd(model, inputs)
    with pytest.raises(ValueError, match="plain language model and takes no pictures"):
        model.inputs([picture(0)], "Hello.")


def test_grouped_query_models_have_query_heads():
    model = load(*build("llama"))
    assert model.hf.config.num_key_value_heads < model.n_heads
    found = read(model, model.inputs(None, "A fork."), ["z", "k", "pattern"])
    assert found["z"].shape[3] == found["pattern"].shape[2] == model.n_heads
    assert found["k"].shape[3] == model.hf.config.num_key_value_heads


ONE_PASS = {"llava", "llava-next", "llava-onevision", "internvl", "idefics3", "smolvlm", "mistral3"}
"""Families in which VHR chooses its heads in the pass that reads the prompt; the others have masks of their own."""


@pytest.mark.parametrize("beams", [1, 2])
def test_vhr_chooses_in_the_pass_that_reads_the_prompt_what_it_would_choose_before(beams, lvlm, batch, monkeypatch):
    method, options = VHR(preset="all", alpha=3.0), {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams}
    calls, fits = [], PackedPrompt._fits
    monkeypatch.setattr(PackedPrompt, "_fits", lambda *args: calls.append(fits(*args)) or calls[-1])
    with method(lvlm) as steered:
        found = lvlm.generate(batch, **options)
    assert calls == ([] if lvlm.family.needs_pixels else [lvlm.family.name in ONE_PASS and beams == 1])
    monkeypatch.setattr(PackedPrompt, "_fits", lambda *_: False)
    with method(lvlm) as before:
        expected = lvlm.generate(batch, **options)
    assert torch.equal(torch.stack(found.tokens), torch.stack(expected.tokens))
    assert torch.equal(steered.heads[0].heads, before.heads[0].heads)
    torch.testing.assert_close(steered.heads[0].vhd, before.heads[0].vhd, **CLOSE)
    assert found.cache_bytes == expected.cache_bytes


STAYING = {"qwen3-vl", "gemma3"}
"""Families whose image tokens are hidden: something is added to them between the layers, or layers have windows."""


@pytest.mark.parametrize("beams", [1, 2])
def test_image_tokens_that_leave_are_as_good_as_hidden_ones(beams, lvlm, batch, monkeypatch):
    """Prompts of different lengths, so that some of the tokens that stay are padding."""
    inputs, options = lvlm.inputs(batch.pictures[:1] * 2, PROMPTS), {"max_new_tokens": 8, "min_new_tokens": 8}
    lengths, kernel = [], torch.nn.functional.scaled_dot_product_attention
    spy = lambda q, *args, **kwargs: lengths.append(q.shape[2]) or kernel(q, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    found = {}
    for leaves in (True, False):
        if not leaves:
            monkeypatch.setattr(fastv, "can_leave", lambda _: False)
        lengths.clear()
        with parse_method("fastv:keep=0.3:layer=1")(lvlm):
            found[leaves] = lvlm.generate(inputs, num_beams=beams, **options)
        fewer = 1 < lengths[-8 * lvlm.n_layers + lvlm.n_layers - 1] < inputs.input_ids.shape[1]
        assert fewer == (leaves and lvlm.family.name not in STAYING)
    assert torch.equal(torch.stack(found[True].tokens), torch.stack(found[False].tokens))


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_operas_candidates_side_by_side_are_as_good_as_rows_of_their_own(variant, lvlm, batch, monkeypatch):
    """Among them searches that go back, and then read shorter texts than the others."""
    method = f"opera:variant={variant}:num_beams=2:candidates=3:threshold=2:sigma=9:rollbacks=2"
    found, masked = {}, []
    takes_masks = rereading.takes_masks
    monkeypatch.setattr(rereading, "takes_masks", lambda *args: masked.append(takes_masks(*args)) or masked[-1])
    for side_by_side in (True, False):
        if not side_by_side:
            monkeypatch.setattr(rereading, "takes_masks", lambda *_: False)
        with parse_method(method)(lvlm):
            found[side_by_side] = lvlm.generate(batch, max_new_tokens=14, min_new_tokens=14).tokens
    assert set(masked) == {lvlm.family.name in ONE_PASS}
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))
