import pytest
import torch
from torch import Tensor

from interp.attribution.proposition1 import alignment
from interp.interventions import VHR, paper_layers, parse_method, scaled_heads
from interp.models import LVLM, Inputs, load, read

PROMPT = "Please describe this image in detail."


def test_paper_layers_of_32_are_the_second_and_the_last_14():
    assert paper_layers(32) == (1, *range(18, 32))
    assert paper_layers(8) == (1, 4, 5, 6, 7)
    assert paper_layers(1) == (0,)


def plain_greedy(model: LVLM, inputs: Inputs, n: int) -> Tensor:
    with torch.no_grad():
        return model.hf.generate(**inputs.kwargs(), max_new_tokens=n, do_sample=False)


def continuation(ids: Tensor, inputs: Inputs, eos: int) -> list[list[int]]:
    rows = ids[:, inputs.input_ids.shape[1] :].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


@pytest.mark.parametrize("choice", ["vision-aware", "random", "bottom"])
def test_all_off_equals_plain_greedy(model, inputs, choice):
    expected = continuation(plain_greedy(model, inputs, 24), inputs, model.tokenizer.eos_token_id)
    with VHR(alpha=1.0, choice=choice)(model):
        tokens = model.generate(inputs, max_new_tokens=24).tokens
    assert [t.tolist() for t in tokens] == expected


def test_nothing_is_left_behind_after_the_with_block(model, inputs):
    before = plain_greedy(model, inputs, 10)
    with VHR(alpha=3.0)(model), pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(inputs, max_new_tokens=0)
    with VHR(alpha=3.0)(model):
        model.generate(inputs, max_new_tokens=4)
    assert torch.equal(plain_greedy(model, inputs, 10), before)
    assert not model.methods
    assert not any(model.out_proj(layer)._forward_pre_hooks for layer in range(model.n_layers))


def traced_generation(model: LVLM, inputs: Inputs, scale: Tensor, **options: int) -> Tensor:
    """The slow reference: the same edit at every step of an nnsight generation trace."""
    ids: list[Tensor] = []
    with torch.no_grad(), model.traced.trace(fn="generate", **inputs.kwargs(), **options, do_sample=False) as tr:
        for _ in tr.iter[: options["max_new_tokens"]]:
            for layer in range(model.n_layers):
                projection = model.out_proj(layer, model.traced)
                z = model.by_head(projection.input)
                projection.input = (z * scale[:, layer, None, :, None]).flatten(-2)
        ids.append(tr.result)
    return ids[0][:, inputs.input_ids.shape[1] :]


def test_native_vhr_equals_the_traced_edit_token_for_token(model, inputs):
    options = {"max_new_tokens": 24, "min_new_tokens": 24}  # an early end would skip the rest of the trace
    with VHR(alpha=2.0)(model) as steered:
        native = torch.stack(model.generate(inputs, **options).tokens)
    scale = torch.where(steered.heads[0].heads, 2.0, 1.0)
    plain = torch.stack(model.generate(inputs, **options).tokens)
    assert torch.equal(native, traced_generation(model, inputs, scale, **options))
    assert not torch.equal(native, plain), "the edit changed nothing: this would test nothing"


def test_selection_goes_layer_by_layer(model, inputs):
    """A layer is chosen from streams in which the earlier layers are already reinforced."""
    together = VHR(alpha=3.0, layers=(1, 4)).select(model, inputs)
    first = VHR(alpha=3.0, layers=(1,)).select(model, inputs)
    plain = VHR(alpha=1.0, layers=(1, 4)).select(model, inputs)
    assert torch.equal(together.vhd[:, :2], plain.vhd[:, :2]), "nothing is reinforced before layer 1"
    torch.testing.assert_close(together.vhd[:, 4], first.vhd[:, 4])
    assert not torch.allclose(together.vhd[:, 4], plain.vhd[:, 4], rtol=1e-3)
    assert not together.heads[:, [0, 2, 3, 5, 6, 7]].any()


def test_controls_take_as_many_heads(model, inputs):
    chosen = VHR().select(model, inputs)
    bottom = VHR(choice="bottom", layers=(1,)).select(model, inputs)
    random = VHR(choice="random", seed=1).select(model, inputs)
    other = VHR(choice="random", seed=2).select(model, inputs)
    assert torch.equal(random.heads.sum(-1), chosen.heads.sum(-1))
    assert not torch.equal(random.heads, other.heads)
    assert torch.equal(random.heads, random.heads[:1].expand_as(random.heads)), "one random set serves all images"
    low = bottom.vhd[:, 1].masked_fill(~bottom.heads[:, 1], 0).amax(-1)
    high = bottom.vhd[:, 1].masked_fill(bottom.heads[:, 1], torch.inf).amin(-1)
    assert (low <= high).all()
    assert torch.equal(bottom.heads[:, 1].sum(-1), chosen.heads[:, 1].sum(-1))
    assert chosen.heads[:, 1].any(-1).all()


def test_all_heads_of_the_layers_are_a_control(model, inputs):
    method = VHR(choice="all", alpha=1.5)
    heads = method.select(model, inputs).heads
    layers = list(method.chosen_layers(model))
    assert heads[:, layers].all()
    assert heads.sum() == heads[:, layers].numel()
    with pytest.raises(ValueError, match="leaves no others"):
        VHR(choice="all", others=0.5)


def test_what_some_heads_gain_the_others_can_lose(model, inputs):
    """The factors of a mean-preserving gain, in the selection pass and in generation."""
    method = VHR(alpha=1.5, others=0.5, layers=(2, 5))
    with method(model) as steered:
        tokens = torch.stack(model.generate(inputs, max_new_tokens=12, min_new_tokens=12).tokens)
    heads = steered.heads[0].heads
    scale = torch.where(heads, 1.5, 0.5)
    scale[:, [0, 1, 3, 4, 6, 7]] = 1.0
    assert torch.equal(method.factors(model, heads), scale)
    assert torch.equal(tokens, traced_generation(model, inputs, scale, max_new_tokens=12, min_new_tokens=12))
    alone = VHR(alpha=1.5, layers=(2, 5)).select(model, inputs)
    torch.testing.assert_close(alone.vhd[:, :3], steered.heads[0].vhd[:, :3])
    assert not torch.allclose(alone.vhd[:, 5], steered.heads[0].vhd[:, 5], rtol=1e-3), "the others go down in layer 2"


def test_scaled_heads_scales_each_row_by_its_own_factors(model, inputs):
    scale = torch.ones(4, model.n_layers, model.n_heads)
    scale[2, 3, 5] = 0
    seen: list[Tensor] = []
    projection = model.out_proj(3)
    with scaled_heads(model, scale):
        handle = projection.register_forward_pre_hook(lambda _, args: seen.append(model.by_head(args[0]).clone()))
        with torch.no_grad():
            model.hf(**inputs.kwargs())
        handle.remove()
    silent = (seen[0] == 0).all(-1).all(1)
    assert silent.nonzero().tolist() == [[2, 5]]


def test_each_row_of_a_batch_is_edited_by_its_own_factors_with_beams_too(model, pictures):
    """Rows with different factors give what they give alone; a row of ones gives plain generation."""
    prompt = "Please describe this image in detail."
    inputs = model.inputs(pictures[:3], prompt)
    scale = torch.ones(3, model.n_layers, model.n_heads)
    scale[0, 1:, :4] = 3.0
    scale[2, 1:, 4:] = 3.0
    for options in ({}, {"num_beams": 2}):
        plain = model.generate(inputs, max_new_tokens=16, **options).texts
        with scaled_heads(model, scale):
            together = model.generate(inputs, max_new_tokens=16, **options).texts
        assert together[1] == plain[1]
        assert together[0] != plain[0]
        for row in range(3):
            with scaled_heads(model, scale[row : row + 1]):
                one = model.inputs([pictures[row]], prompt)
                assert model.generate(one, max_new_tokens=16, **options).texts == [together[row]]
    with pytest.raises(ValueError, match=r"8 layers, 8 heads"), scaled_heads(model, torch.ones(4, 2, 8)):
        pass


def test_reinforcements_nest(model, inputs):
    """The inner one chooses from what the outer one has reinforced, in a batch as alone."""
    with VHR(layers=(1,))(model), VHR(layers=(4, 5))(model) as inner:
        model.generate(inputs, max_new_tokens=2)
    whole = VHR(layers=(1, 4, 5)).select(model, inputs)
    assert torch.equal(inner.heads[0].heads[:, 4:6], whole.heads[:, 4:6])


def reference_selection(model: LVLM, inputs: Inputs, method: VHR, layers: tuple[int, ...]) -> Tensor:
    """Algorithm 1 the slow way: for each layer two hooked passes with all earlier choices applied, row by row."""
    chosen = torch.zeros(len(inputs.input_ids), model.n_layers, model.n_heads, dtype=torch.bool)
    for layer in layers:
        factors = torch.where(chosen, method.alpha, 1.0)
        with scaled_heads(model, factors):
            with_image = read(model, inputs, "z")["z"][:, layer, -1]
        with scaled_heads(model, factors if method.reinforce_image_free else torch.ones_like(factors)):
            without = read(model, inputs.without_image(), "z")["z"][:, layer, -1]
        for row in range(len(chosen)):
            vhd = (with_image[row] - without[row]).pow(2).sum(-1).sqrt()
            energy = without[row].pow(2).sum(-1)
            outlier = (vhd > vhd.mean() + vhd.std()) & (energy > energy.mean() + energy.std())
            vhd = torch.where(outlier, 0.0, vhd)
            middle = vhd.sort().values[model.n_heads // 2 - 1 : model.n_heads // 2 + 1].mean()
            chosen[row, layer] = vhd > middle
    return chosen


@pytest.mark.parametrize("reinforce_image_free", [True, False])
def test_selection_equals_the_algorithm_done_slowly(model, inputs, reinforce_image_free):
    method = VHR(alpha=2.0, reinforce_image_free=reinforce_image_free)
    expected = reference_selection(model, inputs, method, paper_layers(model.n_layers))
    assert torch.equal(method.select(model, inputs).heads, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha of VHR is a number above 0"),
        ({"alpha": 1e20}, "at most 1000, got 1e"),
        ({"alpha": float("inf")}, "got inf"),
        ({"layers": ()}, "layers of VHR names none"),
        ({"preset": "last0%"}, "preset is one of"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VHR(**settings)
    for text in ("vhr:choice=best", "vhr:deviation=none"):
        with pytest.raises(ValueError, match="of VHR is one of"):
            parse_method(text)


def test_layers_outside_the_model_are_refused(model, inputs):
    with pytest.raises(ValueError, match=r"between 0 and 7 in this model, got 8"):
        VHR(layers=(1, 8)).select(model, inputs)


def test_layers_by_preset():
    assert paper_layers(32) == (1, *range(18, 32))
    assert paper_layers(32, "instructblip") == tuple(range(14, 32))
    assert paper_layers(8, "last25%") == (6, 7)
    assert paper_layers(8, "second") == (1,)
    assert paper_layers(4, "all") == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="preset is one of llava"):
        VHR(preset="first")


def test_chosen_anew_at_every_step(model, pictures):
    """The first token is plain VHR's; later ones come from sets of their own."""
    inputs = model.inputs(pictures, "Please describe this image in detail.")
    with VHR(reselect=True)(model):
        found = model.generate(inputs, max_new_tokens=12).tokens
    with VHR()(model) as steered:
        plain = model.generate(inputs, max_new_tokens=12).tokens
    assert all(a[0] == b[0] for a, b in zip(found, plain, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    written = torch.stack([t[:4] for t in plain])
    again = VHR().select(model, inputs, written)
    assert not torch.equal(again.heads, steered.heads[0].heads)
    assert torch.equal(VHR().select(model, inputs).heads, steered.heads[0].heads)
    with VHR(reselect=True)(model), pytest.raises(ValueError, match="cannot follow beams"):
        model.generate(inputs, num_beams=2, max_new_tokens=3)


def test_proposition_1_holds(model, inputs):
    """Scaling a head brings the stream nearer to what it writes, and equals a computation by hand."""
    before, after = alignment(model, inputs, alpha=2.0)
    assert before.shape == (4, model.n_layers, model.n_heads)
    assert (after > before).float().mean() > 0.99
    found = read(model, inputs, ["resid_pre", "attn_out", "z"], positions=inputs.last[:, None])
    weight = model.out_proj(3).weight[:, 2 * model.d_head : 3 * model.d_head]
    alone = found["z"][0, 3, 0, 2] @ weight.T
    stream = found["resid_pre"][0, 3, 0] + found["attn_out"][0, 3, 0] + alone
    gain = model.part(3, "post_attention_layernorm").weight
    expected = torch.cosine_similarity(gain * stream, gain * alone, dim=-1)
    torch.testing.assert_close(after[0, 3, 2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}])
def test_other_types_and_backends(options, pictures):
    """VHR steers there too, and off it changes nothing; with eager attention it does what it does with sdpa."""
    other = load("testbed", **options)
    inputs = other.inputs(pictures, PROMPT)
    plain = other.generate(inputs, max_new_tokens=16).texts
    with VHR(alpha=1.0)(other):
        assert other.generate(inputs, max_new_tokens=16).texts == plain
    with VHR()(other) as steered:
        texts = other.generate(inputs, max_new_tokens=16).texts
    assert texts != plain
    assert steered.heads[0].heads.any((1, 2)).all()
    if "attn_implementation" in options:
        sdpa = load("testbed")
        with VHR()(sdpa):
            assert sdpa.generate(sdpa.inputs(pictures, PROMPT), max_new_tokens=16).texts == texts


def test_sampling_is_steered_too(model, pictures):
    inputs = model.inputs(pictures, PROMPT)
    texts = []
    for _ in range(2):
        with VHR()(model), parse_method("sampling:seed=3")(model):
            texts.append(model.generate(inputs, max_new_tokens=16).texts)
    with parse_method("sampling:seed=3")(model):
        assert model.generate(inputs, max_new_tokens=16).texts != texts[0]
    assert texts[0] == texts[1]
