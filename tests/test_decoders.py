"""Small decoders: kernels against slow references, data, training that resumes, and when a sink appears."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from interp import cli
from interp.testbed import decoders, emergence
from interp.testbed.batches import Batch
from interp.testbed.decoders import (
    DecoderRecipe,
    DecoderTask,
    QuickBias,
    TextSampler,
    at_step,
    blocks,
    build_decoder,
    chosen_recipes,
    train_decoder,
)
from interp.testbed.emergence import emerge, examine, held_out
from interp.testbed.sink_kernels import KERNELS, PARAMETER, probabilities, use_kernel
from interp.testbed.steps import Run, _optimiser

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TINY = DecoderRecipe(layers=1, heads=2, width=16, steps=4, batch=2, warmup=1, vocabulary=300, length=16)
RUN = Run(compile=False, checkpoint_seconds=0.0)


def slow(kernel: str, scores: list[float], extra: float) -> list[float]:
    """One row of scores, key by key; `extra` is the bias's score."""
    if kernel.startswith("sigmoid"):
        given = [1 / (1 + math.exp(-s)) for s in scores]
        return [g / sum(given) for g in given] if kernel == "sigmoid-normalised" else given
    total = sum(math.exp(s) for s in scores) + (math.exp(extra) if kernel in PARAMETER else 0)
    return [math.exp(s) / total for s in scores]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_equals_a_slow_reference(kernel):
    torch.manual_seed(0)
    module, query = nn.Module(), torch.randn(2, 3, 4, 5)
    scores = torch.randn(2, 3, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    if kernel in PARAMETER:
        shape = (3, 5) if kernel == "key-bias" else (3,)
        module.register_parameter(PARAMETER[kernel], nn.Parameter(torch.randn(shape)))
    with torch.no_grad():
        found = probabilities(kernel, module, query, scores, 0.4)
    for head in range(3):
        own = getattr(module, PARAMETER[kernel])[head].detach() if kernel in PARAMETER else None
        for q in range(4):
            extra = 0.0
            if own is not None:
                extra = float(own) if own.ndim == 0 else float(query[1, head, q] @ own) * 0.4
            expected = slow(kernel, scores[1, head, q, : q + 1].tolist(), extra)
            assert found[1, head, q, : q + 1].tolist() == pytest.approx(expected, rel=1e-5)
            assert found[1, head, q, q + 1 :].tolist() == [0] * (3 - q)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [(LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)])
def test_any_llama_configuration_takes_a_kernel(kernel, kind):
    """Grouped queries; later tokens do not reach earlier ones; softmax is the library's own, and the bias acts."""
    torch.manual_seed(0)
    model: Any = kind[1](kind[0](**SIZES, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        before = model(ids).logits
        use_kernel(model, kernel)
        found = model(ids).logits
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 40
        torch.testing.assert_close(model(changed).logits[:, :-1], found[:, :-1])
        assert torch.allclose(before, found, atol=1e-5) == (kernel == "softmax")
        if kernel in PARAMETER:
            own = getattr(model.model.layers[0].self_attn, PARAMETER[kernel])
            own += 3.0
            assert not torch.allclose(model(ids).logits, found)


def test_who_sees_whom():
    window = replace(TINY, length=4, window=2).visible.int().tolist()
    assert window == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    prefix = replace(TINY, length=4, prefix=2).visible.int().tolist()
    assert prefix == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    refused: list[tuple[dict[str, Any], str]] = [({"window": 17}, "window lies"), ({"sink": True}, "fixed=1")]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            replace(TINY, **wrong)


def test_batches_repeat_hold_out_and_fix_a_token():
    ids = np.arange(100_000) % 250 + 1
    kept, out = blocks(np.arange(100_000), False), blocks(np.arange(100_000), True)
    assert not set(kept) & set(out)
    assert len(kept) + len(out) == 100_000
    sampler = TextSampler(ids, replace(TINY, fixed=3, prefix=1), 0, 5)
    one, same, other = sampler(7), sampler(7), sampler(8)
    assert torch.equal(one.text, same.text)
    assert not torch.equal(one.text, other.text)
    assert (one.text[:, 2] == 0).all()
    assert torch.equal(one.text[:, 1:], one.target[:, :-1])
    assert one.weight[0, :4].tolist() == [0, 0, 1, 1], "the prefix, and what is always there, are not learnt"


@pytest.fixture
def short(monkeypatch) -> None:
    monkeypatch.setattr(decoders, "python_documentation", lambda: "A cat sat on the mat. " * 6000)


def test_training_resumes_where_it_was_killed(short, tmp_path, monkeypatch):
    recipe = replace(TINY, kernel="key-bias")
    train_decoder(tmp_path / "whole", "x", recipe, RUN)
    draw = TextSampler.__call__

    def interrupted(self: TextSampler, step: int) -> Batch:
        if step == 2:
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(TextSampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(tmp_path / "parts", "x", recipe, RUN)
    monkeypatch.setattr(TextSampler, "__call__", draw)
    train_decoder(tmp_path / "parts", "x", recipe, RUN)
    a, b = (load_file(tmp_path / run / "x.steps" / "step-000004.safetensors") for run in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(PARAMETER["key-bias"] in name for name in a)
    assert not (tmp_path / "whole" / "x").exists(), "no folder that a loader would read without its kernel"
    with pytest.raises(ValueError, match="another recipe"):
        train_decoder(tmp_path / "parts", "x", replace(recipe, lr=1.0), RUN)
    monkeypatch.setattr(decoders, "python_documentation", lambda: "A dog. " * 9000)
    with pytest.raises(ValueError, match="other text"):
        train_decoder(tmp_path / "parts", "x", recipe, RUN)


def maps_of(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=batch.text, attention_mask=batch.visible, output_attentions=True, use_cache=False)
    return torch.stack(out.attentions, 1)


def test_a_strong_bias_takes_the_sink_and_a_strong_first_key_makes_one():
    """By hand: logit 20 takes nearly all attention; without it a head's mean share decides."""
    recipe = replace(TINY, kernel="sink-logit", length=24)
    batch = TextSampler(np.random.default_rng(0).integers(1, 300, 5000), recipe, 0, 0)(0)
    model = build_decoder(recipe, 0).eval()
    plain = examine(model, batch, recipe, 3, eps=0.12)
    alpha = maps_of(model, batch).sum(-2) / torch.arange(24, 0, -1)
    assert plain.sink[0] == pytest.approx(100 * (alpha[..., 0] > 0.12).float().mean().item())
    assert plain.received == pytest.approx(alpha[..., 0].mean().item(), abs=1e-6)
    with torch.no_grad():
        model.model.layers[0].self_attn.sink_logit.fill_(20.0)
    found = examine(model, batch, recipe, 3)
    assert (found.sink_bias, found.sink_any) == (100, 0)
    assert found.bias > 0.99
    with torch.no_grad():
        out = model(input_ids=batch.text, labels=batch.text, use_cache=False)
    assert found.loss != plain.loss
    assert out.loss.item() == pytest.approx(found.loss, abs=0.3)  # the library leaves out the last target


def test_sigmoid_rows_are_normalised_before_they_are_judged():
    recipe = replace(TINY, kernel="sigmoid", length=24)
    batch = TextSampler(np.random.default_rng(0).integers(1, 300, 5000), recipe, 0, 0)(0)
    model = build_decoder(recipe, 0).eval()
    maps = maps_of(model, batch)
    found = examine(model, batch, recipe, 0)
    assert found.row_sum == pytest.approx(maps.sum(-1).mean().item(), rel=1e-5)
    assert found.row_sum > 3, "half of every key that is seen"
    normal = maps / maps.sum(-1, keepdim=True)
    assert found.received == pytest.approx((normal.sum(-2) / torch.arange(24, 0, -1))[..., 0].mean().item(), rel=1e-5)


def test_the_command_trains_measures_draws_and_goes_on(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoders, "DECODERS", {})
    small = {"softmax": replace(TINY, length=16), "sigmoid": replace(TINY, kernel="sigmoid")}
    monkeypatch.setattr("interp.cli.testbed.DECODERS", small)
    monkeypatch.setattr(decoders, "DECODERS", small)
    args = ["--recipes", "softmax,sigmoid", "--n", "3", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    cli.main(["testbed", "decoders", *args])
    shown = capsys.readouterr().out
    assert "sigmoid" in shown
    found = json.loads((tmp_path / "out" / "emergence.json").read_text())
    assert [r["step"] for r in found["recipes"]["softmax"]["rows"]] == [0, 1, 2, 3, 4]
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == {"usual-kernels", "usual-factors"}
    monkeypatch.setattr(emergence, "examine", lambda *_: pytest.fail("measured again"))
    cli.main(["testbed", "decoders", *args])
    assert capsys.readouterr().out == shown
    with pytest.raises(ValueError, match="was measured with"):
        emerge(tmp_path / "run", "softmax", small["softmax"], 3, eps=0.2)
    model = at_step(tmp_path / "run", "softmax", small["softmax"], 4)
    row = found["recipes"]["softmax"]["rows"][-1]
    batch = held_out(tmp_path / "run", small["softmax"], 3)
    with torch.no_grad():
        hidden = DecoderTask(model)(batch.features, batch.text, batch.position, batch.visible)
        each = nn.functional.cross_entropy(model.lm_head(hidden).transpose(1, 2), batch.target, reduction="none")
    assert row["loss"] == pytest.approx(each.mean().item(), abs=1e-5)


def test_a_quick_bias_learns_faster_than_the_rest():
    settings: dict[str, Any] = vars(TINY) | {"kernel": "sink-logit", "bias_speed": 7.0}
    recipe = QuickBias(**settings)
    rows = _optimiser(DecoderTask(build_decoder(recipe, 0)), recipe, False).param_groups
    assert {row["speed"]: sum(p.numel() for p in row["params"]) for row in rows}[7.0] == recipe.layers * recipe.heads
    assert {row["speed"] for row in rows} == {1.0, 7.0}
    assert "planted-key-bias-quick" in chosen_recipes("planted-kernels")


def test_recipes_are_chosen_by_name_and_group():
    assert chosen_recipes("planted-kernels")[0] == "planted-softmax"
    assert "long" in chosen_recipes("all")
    assert chosen_recipes("softmax, softmax") == ["softmax"]
    with pytest.raises(ValueError, match="recipes are"):
        chosen_recipes("nothing")


def test_a_softmax_decoder_is_a_folder_that_loads(decoder: Path):
    assert (decoder / "tokenizer.json").exists()
    assert json.loads((decoder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
