import pytest
import torch
from torch import Tensor

from interp.interventions import scaled_heads
from interp.metrics.vhd import head_divergence
from interp.models import LVLM, Inputs, read
from interp.trace.divergence import token_vhd, vhd


def last_heads(model: LVLM, inputs: Inputs) -> Tensor:
    """Head outputs at the last token, `[batch, layer, head, d_head]`."""
    return read(model, inputs, "z", positions=inputs.last[:, None])["z"][:, :, 0]


def hooked_head_outputs(model: LVLM, inputs: Inputs) -> Tensor:
    """The reference: plain PyTorch hooks on the input of `o_proj`, `[batch, layer, token, head, d_head]`."""
    seen: list[Tensor] = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        for layer in model.hf.model.language_model.layers
    ]
    with torch.no_grad():
        model.hf(**inputs.kwargs())
    for handle in handles:
        handle.remove()
    return torch.stack([z.unflatten(-1, (model.n_heads, model.d_head)) for z in seen], dim=1)


@pytest.mark.parametrize("which", ["model", "random_model"])
def test_head_outputs_equal_a_plain_hook_bit_for_bit(which, request, pictures):
    model = request.getfixturevalue(which)
    inputs = model.inputs(pictures[:2], ["Describe this image.", "Is there a fork in the image?"])
    expected = hooked_head_outputs(model, inputs)
    assert torch.equal(read(model, inputs, "z")["z"], expected)
    positions = torch.tensor([[70, 3], [75, 60]])
    found = read(model, inputs, "z", positions=positions)["z"]
    for row in range(2):
        assert torch.equal(found[row], expected[row][:, positions[row]])


def test_head_outputs_are_not_slices_of_the_output_projection(model, inputs):
    """The common mistake: what `o_proj` gives is already mixed over heads."""
    after: list[Tensor] = []
    handle = model.out_proj(0).register_forward_hook(lambda _, __, out: after.append(out[:, -1].detach()))
    z = last_heads(model, inputs)[:, 0]
    handle.remove()
    assert not torch.allclose(model.by_head(after[0]), z, rtol=0.1)


def test_vhd_is_the_distance_of_two_separate_passes(model, inputs):
    """One paired pass equals a pass with the image and one without it."""
    with_image = last_heads(model, inputs)
    without = last_heads(model, inputs.without_image())
    torch.testing.assert_close(vhd(model, inputs), head_divergence(with_image, without), rtol=1e-4, atol=1e-5)


def test_vhd_of_a_batch_equals_each_sample_alone(model, pictures):
    prompts = ["Please describe this image in detail.", "Is there a fork in the image?"]
    together = vhd(model, model.inputs(pictures[:2], prompts))
    for row in range(2):
        alone = vhd(model, model.inputs([pictures[row]], [prompts[row]]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_vhd_under_an_open_edit_is_that_of_the_edited_model(model, inputs):
    """Factors of a row serve both its streams; the reference is two separate hooked passes."""
    scale = torch.rand(4, model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(0)) * 2
    with scaled_heads(model, scale):
        with_image = last_heads(model, inputs)
        without = last_heads(model, inputs.without_image())
        found = vhd(model, inputs)
    torch.testing.assert_close(found, head_divergence(with_image, without), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, vhd(model, inputs), rtol=0.1)


def test_teacher_forced_vhd_equals_step_by_step(model, inputs):
    captions = model.generate(inputs, max_new_tokens=12).tokens
    traces = token_vhd(model, inputs, captions)
    for row, (trace, caption) in enumerate(zip(traces, captions, strict=True)):
        assert trace.vhd.shape == (len(caption), model.n_layers, model.n_heads)
        one = model.inputs([inputs.pictures[row]], inputs.texts[row], chat=False)
        for step in range(len(caption)):
            so_far = one.extended([caption[:step]]) if step else one
            torch.testing.assert_close(trace.vhd[step], vhd(model, so_far)[0], rtol=1e-4, atol=1e-4)


def test_token_probability_is_that_of_the_model_with_the_image(model, inputs):
    captions = model.generate(inputs, max_new_tokens=6).tokens
    traces = token_vhd(model, inputs, captions)
    with torch.no_grad():
        logits = model.hf(**inputs.extended(captions).kwargs()).logits
    longest = max(len(c) for c in captions)
    for row, caption in enumerate(captions):
        first = logits.shape[1] - longest - 1
        expected = logits[row, first : first + len(caption)].softmax(-1).gather(-1, caption[:, None])[:, 0]
        torch.testing.assert_close(traces[row].probability, expected, rtol=1e-3, atol=1e-5)


def test_the_image_free_prompt_keeps_the_text_and_drops_the_image(model, inputs):
    without = inputs.without_image()
    assert not without.pixels
    assert not without.image_mask.any()
    assert inputs.image_mask.sum(1).tolist() == [64] * 4
    for row in range(4):
        text = inputs.input_ids[row][inputs.attention_mask[row].bool() & ~inputs.image_mask[row]]
        assert torch.equal(without.input_ids[row][without.attention_mask[row].bool()], text)
        assert without.attention_mask[row, -1] == 1, "padding belongs on the left"


def test_an_empty_caption_is_refused(model, inputs):
    with pytest.raises(ValueError, match="empty one in row 2"):
        token_vhd(
            model, inputs, [torch.tensor([5]), torch.tensor([5]), torch.tensor([], dtype=torch.long), torch.tensor([5])]
        )
