import pytest
import torch
from torch import Tensor

from interp.interventions import scaled_heads
from interp.models import SITES, AttentionCall, Head, read, run_with_edits
from interp.models.compat import attention_backend


def call_of(query, key, value, mask=None, **options) -> AttentionCall:
    return AttentionCall(query, key, value, mask, scaling=1.0, **options)


def test_a_hand_computed_attention_call():
    """Two query heads share one key; the first query sees key 0 only, the second scores ln 3 against 0."""
    ln3 = torch.log(torch.tensor(3.0))
    query = torch.tensor([[[[1.0], [1.0]], [[1.0], [-1.0]]]])
    key = torch.stack([ln3, torch.tensor(0.0)]).view(1, 1, 2, 1)
    value = torch.tensor([[[[4.0], [8.0]]]])
    call = call_of(query, key, value)
    expected = torch.tensor([[[1.0, 0.0], [0.75, 0.25]], [[1.0, 0.0], [0.25, 0.75]]])
    torch.testing.assert_close(call.pattern()[0], expected)
    assert call.scores()[0, 0, 0, 1] == -torch.inf
    torch.testing.assert_close(call.head_outputs(call.pattern())[0, 1], torch.tensor([[5.0], [7.0]]))
    assert torch.equal(call.at(torch.tensor([[1]])).pattern(), call.pattern()[:, :, 1:])


def test_padding_window_and_cap_decide_what_is_seen():
    x = torch.zeros(2, 1, 4, 1)
    padded = call_of(x, x, x, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    torch.testing.assert_close(padded.pattern()[0, 0, 3], torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3]))
    assert padded.pattern()[0, 0, 0].sum() == 0, "a padding query attends to nothing"
    torch.testing.assert_close(call_of(x, x, x, window=2).pattern()[0, 0, 3], torch.tensor([0.0, 0.0, 0.5, 0.5]))
    large = call_of(x + 3, x + 3, x, softcap=2.0).scores()[0, 0, 3, 0]
    assert large == pytest.approx(2 * torch.tanh(torch.tensor(4.5)).item())
    step = call_of(x[:, :, :1], x, x)
    assert step.visible.all(), "one query against a cache sees all of it"


@pytest.mark.parametrize("mask", ["none", "padding", "four", "window"])
def test_what_keys_receive_equals_the_sum_over_the_whole_map(mask):
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 21, 8, generator=random), torch.randn(2, 2, 30, 8, generator=random)
    padding = torch.arange(30) >= torch.tensor([[3], [0]])
    given = {"padding": padding, "four": (torch.rand(2, 1, 21, 30, generator=random) > 0.3)}.get(mask)
    call = AttentionCall(query, key, key.clone(), given, 0.3, softcap=5.0, window=6 if mask == "window" else None)
    expected = call.pattern().sum(2)
    for block in (1, 8, 50):
        torch.testing.assert_close(call.received(block), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_probabilities_equal_the_eager_backend(model, inputs, backend):
    with torch.no_grad(), attention_backend(model.decoder_configs, "eager"):
        expected = torch.stack(model.hf(**inputs.kwargs(), output_attentions=True).attentions, 1)
    with attention_backend(model.decoder_configs, backend):
        found = read(model, inputs, ["pattern", "scores", "blocks.2.attn.hook_pattern"])
    real = inputs.attention_mask.bool()
    found_rows, expected_rows = (x.permute(0, 3, 1, 2, 4)[real] for x in (found["pattern"], expected))
    torch.testing.assert_close(found_rows, expected_rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["scores"].softmax(-1).nan_to_num(), found["pattern"])
    assert torch.equal(found["blocks.2.attn.hook_pattern"], found["pattern"][:, 2])


def test_the_residual_stream_is_the_models_own(model, inputs):
    with torch.no_grad():
        hidden = model.hf(**inputs.kwargs(), output_hidden_states=True).hidden_states
    found = read(model, inputs, ["resid_pre", "resid_post", "attn_out", "mlp_out", "logits"])
    for layer in range(model.n_layers):
        assert torch.equal(found["resid_pre"][:, layer], hidden[layer])
    total = found["resid_pre"] + found["attn_out"] + found["mlp_out"]
    torch.testing.assert_close(total, found["resid_post"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(found["logits"], model.hf(**inputs.kwargs(), use_cache=False).logits)


def test_values_mixed_by_probabilities_are_the_head_outputs(model, inputs):
    found = read(model, inputs, ["q", "k", "v", "scores", "pattern", "z"])
    mixed = torch.einsum("blhqk,blkhd->blqhd", found["pattern"], found["v"])
    torch.testing.assert_close(mixed, found["z"], rtol=1e-4, atol=1e-5)
    dots = torch.einsum("blqhd,blkhd->blhqk", found["q"], found["k"]) * model.d_head**-0.5
    seen = found["scores"].isfinite()
    torch.testing.assert_close(dots[seen], found["scores"][seen], rtol=1e-4, atol=1e-4)


def test_positions_pick_tokens_and_queries(model, inputs):
    sites = ["z", "q", "resid_post", "pattern", "scores", "logits"]
    positions = torch.stack([inputs.last, inputs.last - 3], 1)
    whole, picked = read(model, inputs, sites), read(model, inputs, sites, positions=positions)
    for row in range(4):
        for site in ("z", "q", "resid_post"):
            assert torch.equal(picked[site][row], whole[site][row][:, positions[row]]), site
        for site in ("pattern", "scores"):
            torch.testing.assert_close(picked[site][row], whole[site][row][:, :, positions[row]])
        assert torch.equal(picked["logits"][row], whole["logits"][row][positions[row]])


def test_reduce_keeps_only_what_it_returns(model, inputs):
    alive: list[int] = []

    def norm(site: str, layer: int, value: Tensor) -> Tensor | None:
        alive.append(layer)
        return value.norm(dim=-1).mean((1, 2)) if site == "z" else None

    found = read(model, inputs, ["z", "resid_post"], reduce=norm)
    assert alive == [layer for layer in range(model.n_layers) for _ in range(2)], "layer by layer"
    assert list(found) == ["z"]
    assert found["z"].shape == (4, model.n_layers)


def test_edits_come_in_execution_order(model, inputs):
    order: list[str] = []
    run_with_edits(model, inputs, {site: lambda layer, _, site=site: order.append(f"{site}{layer}") for site in SITES})
    of_layer = [f"{site}{{}}" for site in SITES if site not in ("final_norm", "logits")]
    layers = [s.format(layer) for layer in range(model.n_layers) for s in of_layer]
    assert order == [*layers, "final_norm-1", "logits-1"]


def test_editing_head_outputs_equals_a_native_hook(model, inputs):
    scale = torch.rand(4, model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(0)) * 2
    edited = run_with_edits(model, inputs, {"z": lambda layer, z: z * scale[:, layer, None, :, None]})
    with scaled_heads(model, scale), torch.no_grad():
        assert torch.equal(edited, model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_pre", "resid_post"])
def test_editing_a_stream_equals_a_forward_hook(model, inputs, site):
    layer = model.layer(3)
    module = {"attn_out": layer.self_attn, "mlp_out": layer.mlp}.get(site, layer)

    def after(_, __, out):
        return (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5

    handle = (
        layer.register_forward_pre_hook(lambda _, args: (args[0] * 0.5, *args[1:]))
        if site == "resid_pre"
        else module.register_forward_hook(after)
    )
    with torch.no_grad():
        expected = model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits
    handle.remove()
    edited = run_with_edits(model, inputs, {f"blocks.3.hook_{site}": lambda _, x: x * 0.5})
    assert torch.equal(edited, expected)
    assert not torch.equal(edited, run_with_edits(model, inputs, {}))


@pytest.mark.parametrize("site", ["q", "k", "v", "scores", "pattern"])
def test_editing_inside_the_kernel(model, inputs, site):
    """Halving queries, keys or scores is the same edit; so is halving values, probabilities or head outputs."""
    alike = "scores" if site in ("q", "k", "scores") else "z"
    halved = run_with_edits(model, inputs, {f"blocks.4.{site}": lambda _, x: x * 0.5})
    torch.testing.assert_close(
        halved, run_with_edits(model, inputs, {f"blocks.4.{alike}": lambda _, x: x * 0.5}), rtol=1e-4, atol=1e-4
    )
    assert (halved - run_with_edits(model, inputs, {})).abs().max() > 1e-3


def test_reading_everything_changes_nothing(model, inputs):
    plain = run_with_edits(model, inputs, {}, keep=None)
    assert torch.equal(read(model, inputs, SITES[:1] + SITES[2:])["logits"], plain)
    assert model.backend == "sdpa"


def test_wrong_sites_and_heads_are_refused(model, inputs):
    with pytest.raises(ValueError, match=r"unknown site 'zz'; expected one of resid_pre, .*attn\.hook_z"):
        read(model, inputs, "zz")
    with pytest.raises(ValueError, match="layers 0 to 7"):
        read(model, inputs, "blocks.8.attn.hook_z")
    with pytest.raises(ValueError, match=r"an edit of z in layer 0 gave shape .*; expected the shape of what it was"):
        run_with_edits(model, inputs, {"z": lambda _, z: z[..., :1]})
    assert str(Head(12, 5)) == "L12H5"
    assert Head.parse("L12H5") == (12, 5)
    for wrong in ("12.5", "L1", "H3L2", ""):
        with pytest.raises(ValueError, match="written like L12H5"):
            Head.parse(wrong)
