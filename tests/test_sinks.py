"""Sinks on text: what stands first, several lengths, checkpoints, and what happens without the sink."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_attention import full_maps
from torch import Tensor

from interp import cli
from interp.english import digest, reference_manual
from interp.experiments import sink_checkpoints
from interp.experiments.sinks import Estimate, SinksConfig, losses, measure
from interp.experiments.sinks_report import with_random_weights
from interp.experiments.unsink import UnsinkConfig, conditions, measure_unsink, penalty
from interp.interventions import VASparse, parse_method
from interp.metrics.attention import received
from interp.models import LVLM, load, run_with_edits
from interp.models.checkpoints import checkpoints_of, put_weights
from interp.trace.sinks import sequences

EDIT = "interp.interventions.methods.sink_edit:SinkEdit"


@pytest.fixture(scope="module")
def planted() -> LVLM:
    return load("testbed-sink", check=False)


def test_the_english_is_there_and_is_prose():
    text = reference_manual()
    assert len(text) > 300_000
    assert "the" in text.split()[:200]
    assert digest(text) == digest(text) != digest(text + " ")


def test_lengths_are_read_and_refused():
    assert SinksConfig(length="64,256x3", n=5).lengths == [(64, 5), (256, 3)]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"length": "64x"}, "a length is a number"),
        ({"length": "8,8x2"}, "told once"),
        ({"length": "1"}, "length 1 is a number of at least 2"),
        ({"first": "masked"}, "leave repeated out"),
        ({"checkpoints": "a,b"}, "checkpoints need --out"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            SinksConfig(**wrong)


def test_what_stands_first(planted):
    kept, none, masked, other = (
        sequences(planted, "natural", 3, 12, first=first) for first in ("kept", "none", "masked", "replaced")
    )
    begin = planted.tokenizer.bos_token_id
    assert torch.equal(none.input_ids[:, :-1], kept.input_ids[:, 1:])
    assert masked.attention_mask.sum(1).tolist() == [11] * 3
    assert torch.equal(masked.position_ids, kept.position_ids)
    assert torch.equal(other.input_ids[:, 1:], kept.input_ids[:, 1:])
    assert (other.input_ids[:, 0] != begin).all()


def test_natural_sequences_of_a_long_text_do_not_overlap(planted):
    text = " ".join(str(i) for i in range(400))
    ids = planted.tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = sequences(planted, "natural", 6, 16, text=text).input_ids[:, 1:].tolist()
    starts = sorted(next(i for i in range(len(ids)) if ids[i : i + 15] == row) for row in rows)
    assert all(later - start >= 15 for start, later in pairwise(starts))


def test_own_samples_are_the_models_and_repeat_with_the_seed(planted):
    one, same, other = (sequences(planted, "own", 2, 9, seed).input_ids for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (2, 9)
    assert (one[:, 0] == planted.tokenizer.bos_token_id).all()


def test_a_row_equals_a_slow_computation_from_full_maps(planted):
    """Sink_1, Sink_k, loss and sparsity from eager's maps, one by one; batches of one sequence and of two."""
    inputs = sequences(planted, "natural", 2, 40, seed=3)
    row = measure(planted, inputs, "natural").row
    maps = full_maps(planted, inputs)  # [batch, layer, head, query, key]
    alpha = received(maps)
    assert row.sink_1.mean == pytest.approx(100 * (alpha[..., 0] > 0.3).float().mean().item(), abs=1e-4)
    each = 100 * (alpha[..., 0] > 0.3).float().mean((1, 2))
    assert row.sink_1.error == pytest.approx(each.std().item() / 2**0.5, abs=1e-4)
    assert row.places[2] == pytest.approx(100 * (alpha[..., 2] > 0.3).float().mean().item(), abs=1e-4)
    assert row.received == pytest.approx(alpha[..., 0].mean().item(), abs=1e-5)
    with torch.no_grad():
        out = planted.hf(**inputs.kwargs(), labels=inputs.input_ids)
    assert row.loss.mean == pytest.approx(out.loss.item(), abs=1e-4)
    shares = []
    for query in range(40 - 32, 40):
        ranked = maps[..., query, : query + 1].sort(descending=True).values.cumsum(-1)
        shares.append(((ranked < 0.98).sum(-1) + 1).clamp(max=query + 1) / (query + 1))
    assert row.share.mean == pytest.approx(100 * torch.stack(shares).mean().item(), abs=0.01)


def test_an_estimate_by_hand():
    found = Estimate.of(torch.tensor([1.0, 2.0, float("nan"), 6.0]))
    assert found.mean == pytest.approx(3.0)
    assert found.error == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)
    assert np.isnan(Estimate.of(torch.tensor([1.0])).error)


def test_random_weights_are_those_of_the_seed_and_leave_the_model(planted):
    before = planted.fingerprint
    one, same, other = (with_random_weights(planted, seed).fingerprint for seed in (0, 0, 1))
    assert one == same
    assert len({one, other, before, planted.fingerprint}) == 3


def test_masking_the_sink_equals_an_attention_mask_without_it(planted):
    inputs = sequences(planted, "natural", 2, 20)
    hidden = inputs.attention_mask.clone()
    hidden[:, 0] = 0
    with torch.no_grad():
        expected = planted.hf(**(inputs.kwargs() | {"attention_mask": hidden})).logits
    found = run_with_edits(planted, inputs, conditions()["sink masked"], keep=None)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_the_penalty_is_vasparses(planted):
    """Its sink penalty in generation, first step, against the scores edit of one pass over the prompt."""
    inputs = sequences(planted, "natural", 2, 20)
    with VASparse(keep=1.0, alpha=0.0, beta=0.7)(planted):
        written = planted.generate(inputs, max_new_tokens=1).tokens
    logits = run_with_edits(planted, inputs, {"scores": penalty(0.7)})
    assert [int(t[0]) for t in written] == logits[:, -1].argmax(-1).tolist()
    assert not torch.allclose(logits, run_with_edits(planted, inputs, {"scores": penalty(0.0)}))


def test_unsink_tells_every_condition_and_the_heads(planted):
    report = measure_unsink(planted, UnsinkConfig(n=3, length=24, batch_size=2))
    plain, masked = report.conditions[0], report.conditions[1]
    assert (plain.difference.mean, plain.difference.error) == (0, 0)
    assert masked.first_mass == 0
    assert plain.first_mass == pytest.approx(report.mass.mean(), abs=0.02)
    by_name = {c.name: c for c in report.conditions}
    assert by_name["sink drained"].first_mass == pytest.approx(plain.first_mass, abs=0.1), "it is seen as before"
    assert by_name["sink drained"].difference.mean != 0
    inputs = sequences(planted, "natural", 3, 24)
    assert plain.loss.mean == pytest.approx(
        losses(run_with_edits(planted, inputs, {}, keep=None), inputs).mean().item(), abs=1e-4
    )
    np.testing.assert_allclose(report.adds.mean(1), 1, rtol=1e-5)
    assert "sink drained" in str(report)


@pytest.mark.parametrize("op", ["mask", "drain"])
def test_a_caption_without_the_sink_equals_whole_passes(planted, pictures, op):
    """The method with its cache against passes over all the text so far, token by token; rows of two lengths."""
    inputs = planted.inputs(pictures[:2], ["Please describe this image in detail.", "Describe this image."])
    with parse_method(f"{EDIT}:op={op}")(planted):
        written = planted.generate(inputs, max_new_tokens=4, min_new_tokens=4).tokens
    first = inputs.attention_mask.int().argmax(1)

    def masked(_: int, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, at in enumerate(first.tolist()):
            scores[row, :, at + 1 :, at] = -torch.inf
        return scores

    def drained(_: int, pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        for row, at in enumerate(first.tolist()):
            pattern[row, :, at + 1 :, at] = 0
        return pattern

    edits: dict[str, Any] = {"mask": {"scores": masked}, "drain": {"pattern": drained}}[op]
    for n in range(4):
        so_far = inputs.extended([t[:n] for t in written])
        logits = run_with_edits(planted, so_far, edits)
        logits[:, :, planted.tokenizer.eos_token_id] = -torch.inf
        assert logits[:, -1].argmax(-1).tolist() == [int(t[n]) for t in written]


def test_checkpoints_by_folder_step_and_revision(tmp_path):
    for name in ("checkpoint-200", "checkpoint-50"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").touch()
    assert [c.step for c in checkpoints_of(str(tmp_path / "run"))] == [50, 200]
    hub = checkpoints_of("EleutherAI/pythia-70m@step512,EleutherAI/pythia-70m@step1")
    assert [(c.step, c.place, c.revision) for c in hub] == [
        (1, "EleutherAI/pythia-70m", "step1"),
        (512, "EleutherAI/pythia-70m", "step512"),
    ]
    with pytest.raises(ValueError, match="of the same step"):
        checkpoints_of("a@step1,b@step1")
    (tmp_path / "x.steps").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoints"):
        checkpoints_of(str(tmp_path / "x.steps"))
    (tmp_path / "x.steps" / "step-000004.safetensors").touch()
    with pytest.raises(ValueError, match="belong to a model folder beside it"):
        checkpoints_of(str(tmp_path / "x.steps"))


def test_sinks_over_checkpoints_go_on_where_they_stopped(tmp_path, monkeypatch, capsys, decoder: Path):
    """The weights of a training's steps, put into its model; a second call measures nothing."""
    out = tmp_path / "out"
    args = ["sinks", "--checkpoints", f"{decoder}.steps", "--inputs", "natural", "--n", "2", "--length", "16"]
    cli.main([*args, "--out", str(out)])
    shown = capsys.readouterr().out
    rows = json.loads((out / "checkpoints.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["loss"]["mean"] > rows[-1]["loss"]["mean"]
    assert len({row["weights"] for row in rows}) == 5
    assert (out / "checkpoints.png").exists()
    monkeypatch.setattr(sink_checkpoints, "_measured", lambda *_: pytest.fail("measured again"))
    cli.main([*args, "--out", str(out)])
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit):
        cli.main([*args, "--eps", "0.2", "--out", str(out)])
    assert "differing: eps" in capsys.readouterr().err


def test_kept_weights_are_the_models(decoder: Path):
    """The last step of the folder is the finished model, rounded to bfloat16; foreign weights are refused."""
    model = load(str(decoder), check=False)
    expected = {name: p.clone() for name, p in model.hf.named_parameters()}
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    put_weights(model, decoder.with_suffix(".steps") / "step-000004.safetensors")
    for name, p in model.hf.named_parameters():
        assert torch.equal(p, expected[name].bfloat16().float()), name
    with pytest.raises(ValueError, match="has no place for"):
        put_weights(load("testbed-sink", check=False), decoder.with_suffix(".steps") / "step-000004.safetensors")


def test_the_commands_write_and_draw(tmp_path, capsys):
    out = tmp_path / "sinks"
    args = ["sinks", "--model", "testbed-sink", "--inputs", "natural", "--length", "16x2,40x2", "--against-random"]
    cli.main([*args, "--out", str(out)])
    assert "random weights" in capsys.readouterr().out
    figures = {"against_random", "layers", "sink_natural_16", "sink_natural_40", "sparsity_length"}
    assert {p.stem for p in out.glob("*.png")} == figures
    found = json.loads((out / "sinks.json").read_text())
    assert [row["length"] for row in found["rows"]] == [16, 40]
    cli.main(["unsink", "--model", "testbed-sink", "--n", "2", "--length", "12", "--out", str(tmp_path / "unsink")])
    assert "sink masked" in capsys.readouterr().out
    assert (tmp_path / "unsink" / "heads.png").exists()


def test_replacing_inputs_keeps_what_is_not_replaced(planted):
    """A masked first token is padding to the statistics: it neither asks nor is seen."""
    inputs = sequences(planted, "natural", 2, 24, first="masked")
    row = measure(planted, inputs, "natural").row
    assert row.sink_1.mean == 0
    assert row.places[0] == 0
    free = replace(inputs, attention_mask=torch.ones_like(inputs.attention_mask))
    assert measure(planted, free, "natural").row.sink_1.mean > 0
