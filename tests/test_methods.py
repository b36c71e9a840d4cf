"""Every method of the registry: off equals greedy, batches equal single samples, and each does what it says."""

from typing import Any

import pytest
import torch
from test_families import PROMPTS, picture
from transformers import LogitsProcessor
from zoo import TEXT, build

from interp import cli
from interp.interventions import (
    H2O,
    METHODS,
    PAI,
    Beams,
    DoLa,
    FastV,
    SnapKV,
    StopBias,
    StreamingLLM,
    TopK,
    describe_methods,
    parse_method,
)
from interp.interventions.methods import fastv
from interp.interventions.primitives import leaving_tokens
from interp.interventions.primitives.hidden_keys import Left
from interp.interventions.registry import written
from interp.models import AttentionCall, load
from interp.models.kernels import watched

STEPS: Any = {"max_new_tokens": 16, "min_new_tokens": 16}
OFF = [":".join([name, METHODS[name].build.off]).rstrip(":") for name in METHODS]


@pytest.mark.parametrize("name", ["testbed", "qwen2.5-vl", "gemma3", "blip-2", "internvl"])
@pytest.mark.parametrize("off", OFF)
def test_every_method_has_an_off_setting_equal_to_greedy(name, off, model):
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1, 40, 60)], PROMPTS)
    expected = lvlm.generate(inputs, **STEPS).tokens
    with parse_method(off)(lvlm):
        found = lvlm.generate(inputs, **STEPS).tokens
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "beams:num_beams=3",
        "pai",
        "dola",
        "deco",
        "icd",
        "avisc",
        "top-k:keep=0.2",
        "fastv:keep=0.2",
        "streaming-llm",
        "h2o:keep=0.3",
        "h2o:evict=false",
        "snapkv:window=8",
        "spin",
    ],
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_rows_of_a_batch_equal_each_alone(text, options, model, inputs):
    if text.startswith("beams") and options:
        return
    method = parse_method(text)
    with method(model):
        together = model.generate(inputs, max_new_tokens=16, **options).texts
        for row in range(4):
            one = model.inputs([inputs.pictures[row]], inputs.texts[row], chat=False)
            assert model.generate(one, max_new_tokens=16, **options).texts == [together[row]]


@pytest.mark.parametrize(
    "text",
    [
        "vcd",
        "m3id:gamma=0.2",
        "pai:alpha=2",
        "dola",
        "deco:alpha=5",
        "icd:alpha=5",
        "avisc",
        "spin:suppress=0.5",
        "top-k:keep=0.03",
        "fastv:keep=0.05",
        "h2o:keep=0.05",
    ],
)
def test_a_strong_setting_changes_what_is_written(text, model, pictures):
    inputs = model.inputs(pictures, "Please describe this image in detail.")
    greedy = model.generate(inputs, max_new_tokens=40).texts
    with parse_method(text)(model):
        assert model.generate(inputs, max_new_tokens=40).texts != greedy
    assert model.generate(inputs, max_new_tokens=40).texts == greedy, "nothing is left behind"


def test_a_bias_on_stopping_is_one_on_its_log_odds(model, inputs):
    seen: list[torch.Tensor] = []

    class Seen(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(scores.log_softmax(-1))
            return scores

    for bias in (0.0, 1.5):
        with StopBias(bias)(model):
            model.generate(inputs, max_new_tokens=1, logits_processor=[Seen()])
    odds = [log_p[:, eos := model.tokenizer.eos_token_id] - (1 - log_p[:, eos].exp()).log() for log_p in seen]
    torch.testing.assert_close(odds[1] - odds[0], torch.full((4,), 1.5), rtol=1e-3, atol=1e-3)


def test_a_bias_against_stopping_writes_more_and_one_for_it_less(model, pictures):
    inputs = model.inputs(pictures, "Please describe this image in detail.")
    lengths = []
    for bias in (-20, 0, 20):
        with parse_method(f"stop-bias:bias={bias}")(model):
            lengths.append([len(t) for t in model.generate(inputs, max_new_tokens=60).tokens])
    assert lengths[0] == [60] * 4
    assert all(more >= some > less for more, some, less in zip(*lengths, strict=True))
    assert sum(lengths[0]) > sum(lengths[1])


def test_a_bias_on_stopping_needs_an_end(model, monkeypatch):
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", None)
    with pytest.raises(ValueError, match="names none"), StopBias()(model):
        pass


def seen_by(method: Any, patterns: torch.Tensor, notes: Any = None) -> torch.Tensor:
    """What a method lets each query of a causal map see, from keys with these probabilities."""
    x = torch.zeros(1, 1, patterns.shape[-1], 1)
    return method.seen(AttentionCall(x, x, x, None, 1.0), patterns, type(method).notes() if notes is None else notes)


def test_what_each_baseline_keeps_by_hand():
    a = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0.2, 0.5, 0.3, 0], [0.1, 0.2, 0.3, 0.4]])[None, None]
    assert seen_by(TopK(keep=0.5), a)[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    streaming = seen_by(StreamingLLM(sinks=1, window=1, prefill="windowed"), a)[0, 0].int().tolist()
    assert streaming == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    # received before the last query: 2.1, 0.6, 0.3; with it 2.2, 0.8, 0.6, 0.4: one heavy hitter, one latest key
    assert seen_by(H2O(keep=0.5, evict=False), a)[0, 0, 3].int().tolist() == [1, 0, 0, 1]
    notes = Left()
    seen = seen_by(SnapKV(keep=0.5, window=1, pool=1), a, notes)
    assert torch.equal(seen[0, 0], torch.ones(4, 4).tril().bool()), "the prefill sees everything"
    assert notes.alive is not None
    assert notes.alive[0, 0].tolist() == [False, True, True, True], "two of three, and the window"


@pytest.mark.parametrize("leaves", [True, False])
def test_fastv_takes_most_image_tokens_from_later_layers(leaves, model, pictures, monkeypatch):
    """They leave the sequence; where they cannot, no query sees them, and they leave the cache after the prompt."""
    inputs = model.inputs(pictures[:2], "Please describe this image in detail.")
    masks: list[torch.Tensor] = []
    n_queries: list[int] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        n_queries.append(query.shape[2])
        if attn_mask is not None:
            masks.append(attn_mask)
        return kernel(query, *args, attn_mask=attn_mask, **kwargs)

    if not leaves:
        monkeypatch.setattr(fastv, "can_leave", lambda _: False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with FastV(keep=0.25, layer=3)(model):
        found = model.generate(inputs, max_new_tokens=2, min_new_tokens=2)
    n = inputs.input_ids.shape[1]
    prompt = [m for m in n_queries if m > 1][-model.n_layers :]
    assert prompt == [n] * 3 + [n - 48 if leaves else n] * (model.n_layers - 3), "before that layer nothing changes"
    assert len(masks) == (0 if leaves else model.n_layers - 3)
    for mask in masks:
        for row in range(2):
            assert mask[row, 0, -1, inputs.image_mask[row]].sum() == 16, "a quarter of 64, the same for all heads"
    whole = model.generate(inputs, max_new_tokens=2, min_new_tokens=2).cache_bytes
    left = 3 + (model.n_layers - 3) * (n - 47) / (n + 1)
    assert found.cache_bytes / whole == pytest.approx(left / model.n_layers)


def test_what_layers_are_given_loses_its_tokens_by_name_and_not_by_size():
    """As many tokens as numbers in a head: positions lie on one axis, rotations on another."""
    order, square = torch.tensor([[0, 2], [1, 2]]), torch.arange(9.0).view(1, 3, 3)
    assert torch.equal(leaving_tokens._at(square, order, -2), square[0][order])
    mask = torch.arange(9).view(1, 1, 3, 3)
    assert leaving_tokens._at(mask, order, -1).tolist() == [[[[0, 2], [6, 8]]], [[[4, 5], [7, 8]]]]
    assert leaving_tokens._at(torch.arange(3)[None], order, -1).tolist() == [[0, 2], [1, 2]]


def test_pai_looks_more_at_the_picture(model, pictures):
    inputs = model.inputs(pictures[:2], "Please describe this image in detail.")
    found: list[torch.Tensor] = []

    def watch(call: AttentionCall) -> None:
        found.append(call.pattern())

    with watched(model.decoder_configs, {model.part(4, "self_attn"): watch}):
        model.generate(inputs, max_new_tokens=1)
    with PAI(alpha=1.0, gamma=1.0)(model):
        handle = model.part(4, "self_attn").register_forward_hook(lambda _, __, out: found.append(out[1]))
        model.generate(inputs, max_new_tokens=1)
        handle.remove()
    plain, pushed = (p[0, :, -1, inputs.image_mask[0]].sum(-1).mean() for p in found[:2])
    assert pushed > plain


def test_sampling_repeats_with_its_seed(model, inputs):
    texts = []
    for seed in (1, 1, 2):
        with parse_method(f"sampling:seed={seed}")(model):
            texts.append(model.generate(inputs, max_new_tokens=16).texts)
    assert texts[0] == texts[1] != texts[2]


def test_methods_that_cannot_be_combined_are_refused(model, inputs):
    refused = pytest.raises(ValueError, match=r"VASparse and TopK both set .* of generate; they cannot be combined")
    with parse_method("vasparse")(model), parse_method("top-k")(model), refused:
        model.generate(inputs, max_new_tokens=2)
    with parse_method("vasparse")(model), parse_method("vcd")(model):  # attention and logits can
        assert model.generate(inputs, max_new_tokens=4).texts
    assert not model.methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top-k:keep=0", "keep of TopK is a number above 0 and at most 1"),
        ("fastv:layer=0", "layer of FastV is a whole number of at least 1"),
        ("snapkv:pool=4", "pool of SnapKV is an odd number"),
        ("streaming-llm:window=-1", "window of StreamingLLM is a whole number of at least 0"),
        ("pai:gamma=0.5", "gamma of PAI is a number of at least 1"),
        ("pai:alpha=nan", "alpha of PAI is a number .*, got nan"),
        ("pai:layers=1.5", "layers of PAI is numbers joined by"),
        ("vcd:alpha=nan", "alpha of VCD is a number .*, got nan"),
        ("icd:instruction=foo", "instruction of ICD is one of every, shapes, avoid, confused, general, got 'foo'"),
        (f"vcd:seed={2**63}", "seed of VCD is a whole number"),
        ("vcd:seed=-1", "seed of VCD is a whole number of at least 0"),
        ("m3id:gamma=nan", "gamma of M3ID"),
        ("m3id:gamma=1000", "gamma of M3ID is a number of at least 0 and at most 1"),
        ("m3id:confidence=0", "confidence of M3ID is a number above 0"),
        ("vhr:alpha=1e20", "alpha of VHR is a number above 0 and at most 1000"),
        ("vhr:alpha=inf", "got inf"),
        ("vhr:alpha=2:alpha=3", "alpha is given twice"),
        ("edit:heads=L0H0:factor=nan", "factor of EditHeads"),
        ("edit:heads=" + "+".join(f"L{i}H0" for i in range(100)), "at most 230 characters"),
        ("dola:plausibility=0", "plausibility of DoLa is a number above 0"),
        ("beams:num_beams=0", "num_beams of Beams is a whole number of at least 1"),
        ("beams:num_beams=2.5", "num_beams of Beams is a whole number"),
        ("sampling:top_p=0", "top_p of Sampling is a number above 0"),
        ("spin:suppress=2", "suppress of SPIN is a number of at least 0 and at most 1"),
        ("icdd", "unknown method 'icdd'; expected one of greedy"),
        ("vhrr", "did you mean vhr"),
    ],
)
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_types_are_checked_too():
    for wrong in (2.5, True, "2"):
        with pytest.raises(ValueError, match="whole number"):
            Beams.parameters()["num_beams"].refuse("Beams", wrong)
    with pytest.raises(ValueError, match="numbers joined by"):
        PAI.parameters()["layers"].refuse("PAI", [1, 2])


@pytest.mark.parametrize("text", ["pai:layers=99", "spin:layers=99", "fastv:layer=8", "dola:layers=9", "vhr:layers=8"])
def test_layers_that_are_not_there_are_refused_before_anything_runs(text, model):
    with pytest.raises(ValueError, match="layers are between 0 and 7 in this model"):
        parse_method(text).check(model)
    with pytest.raises(ValueError, match="layers are between 0 and 7 in this model"), parse_method(text)(model):
        pass


def test_methods_that_work_with_pictures_are_refused_without():
    text_only = load(*build(next(iter(TEXT))))
    with pytest.raises(ValueError, match="VCD works with pictures"):
        parse_method("vcd").check(text_only)


def test_every_default_is_shown_as_it_is_written():
    for name, entry in METHODS.items():
        assert parse_method(written(name)) == entry()
    shown = describe_methods()
    assert "random-heads  alpha=2.0 layers=auto" in shown
    controls = [line for line in shown.splitlines() if "Control of VHR" in line]
    assert len(controls) == 3
    assert parse_method("dola:layers=") == DoLa(layers=())
    assert parse_method("dola:layers=auto") == DoLa()


def test_the_list_of_methods_names_each_with_its_citation(capsys):
    cli.main(["methods"])
    printed = capsys.readouterr().out
    for name in METHODS:
        assert f"\n{name}" in f"\n{printed}"
        assert METHODS[name].build.citation in printed
