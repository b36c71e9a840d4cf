"""What heads do: exact and attributed contributions, direct logits, the probe, the command, and heads.npz."""

import json
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from configured import configured
from real_tokenizers import REAL
from test_families import PROMPTS, picture
from zoo import build

from interp import cli
from interp.attribution.effects import attributed_contributions, exact_contributions
from interp.attribution.lens import first_tokens, head_logits
from interp.attribution.probe import Cut, goes_on_to_name
from interp.evaluate.objects import ObjectParser
from interp.experiments.attribution import CausalConfig, run_causal
from interp.experiments.attribution_report import maps_of
from interp.experiments.records import EffectRecord, HeadsRecord
from interp.interventions import EditHeads
from interp.metrics.ranking import spearman
from interp.models import head_results, image_free, load, read

PROMPT = "Please describe this image in detail."


def log_p(model: Any, inputs: Any, caption: torch.Tensor, row: int) -> torch.Tensor:
    logits = model.hf(**inputs.kwargs(), use_cache=False).logits[row]
    start = inputs.input_ids.shape[1] - len(caption) - 1
    return logits[start:-1].log_softmax(-1).gather(-1, caption[:, None])[:, 0]


@pytest.mark.parametrize("name", ["testbed", "qwen2.5-vl", "gemma3"])
def test_exact_contributions_are_those_of_silenced_heads(name, model):
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1)], PROMPTS)
    captions = lvlm.generate(inputs, max_new_tokens=5, min_new_tokens=5).tokens
    found = exact_contributions(lvlm, inputs, captions)
    assert found.shape == (2, 2, 5, lvlm.n_layers, lvlm.n_heads)
    with torch.no_grad():
        for stream, prompts in enumerate((inputs, image_free(lvlm, inputs))):
            whole = prompts.extended(captions)
            plain = log_p(lvlm, whole, captions[1], 1)
            with EditHeads(heads="L1H2", op="zero").steer(lvlm, prompts):
                silenced = log_p(lvlm, whole, captions[1], 1)
            torch.testing.assert_close(found[1, stream, :, 1, 2], plain - silenced, rtol=1e-3, atol=1e-4)


def test_attribution_is_the_slope_and_predicts_the_exact_value(model, inputs):
    captions = [t[:20] for t in model.generate(inputs, max_new_tokens=20).tokens]
    tokens = [[0, 4], [0], [7], []]
    found = attributed_contributions(model, inputs, captions, tokens)
    assert [tuple(f.shape) for f in found] == [(2, 2, 8, 8), (1, 2, 8, 8), (1, 2, 8, 8), (0, 2, 8, 8)]
    whole, step = inputs.extended(captions), 1e-2
    with torch.no_grad():  # a difference quotient
        both = []
        for factor in (1 + step, 1 - step):
            with EditHeads(heads="L5H1", factor=factor).steer(model, inputs):
                logits = model.hf(**whole.kwargs(), use_cache=False, logits_to_keep=21).logits[0, 4]
            both.append(logits.log_softmax(-1)[captions[0][4]])
    assert found[0][1, 0, 5, 1].item() == pytest.approx(float(both[0] - both[1]) / (2 * step), rel=0.02, abs=1e-4)
    exact = exact_contributions(model, inputs, captions)
    assert (spearman(found[0][1, 0], exact[0, 0, 4]) or 0) > 0.7


def test_empty_captions_are_refused(model, inputs):
    captions = [torch.tensor([5]), torch.tensor([5]), torch.tensor([], dtype=torch.long), torch.tensor([5])]
    with pytest.raises(ValueError, match="an empty one in row 2"):
        exact_contributions(model, inputs, captions)
    with pytest.raises(ValueError, match="an empty one in row 2"):
        attributed_contributions(model, inputs, captions, [[], [], [], []])


@pytest.mark.parametrize("name", ["testbed", "gemma3", "blip-2"])
def test_direct_logits_of_heads_add_up(name, model):
    """With what the rest of the residual stream writes, through the same norm, they give the model's logits."""
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1)], PROMPTS)
    ids, places = torch.tensor([7, 9]), inputs.last[:, None]
    heads = head_logits(lvlm, inputs, places, ids)
    assert heads.shape == (2, lvlm.n_layers, 1, lvlm.n_heads, 2)
    found = read(lvlm, inputs, ["z", "resid_post"], positions=places)
    directions = [head_results(lvlm, found["z"][:, i, 0], i) for i in range(lvlm.n_layers)]
    bias = getattr(lvlm.out_proj(0), "bias", None)
    z = found["z"][:, 0, 0].flatten(1)
    whole = lvlm.out_proj(0)(z)
    torch.testing.assert_close(directions[0].sum(1) + (0 if bias is None else bias), whole, rtol=1e-4, atol=1e-4)
    stream = found["resid_post"][:, -1, 0]
    norm = attrgetter(lvlm.family.final_norm)(lvlm.hf)
    removed = stream - torch.stack(directions, 1).sum((1, 2))
    shift = getattr(norm, "bias", None)
    centre = (lambda x: x - x.mean(-1, keepdim=True)) if shift is not None else (lambda x: x)
    slope = (norm(stream) - (0 if shift is None else shift)) / centre(stream)
    unembed = lvlm.hf.get_output_embeddings().weight[ids]
    rest = (centre(removed) * slope) @ unembed.T
    expected = (norm(stream) - (0 if shift is None else shift)) @ unembed.T
    torch.testing.assert_close(heads.sum((1, 2, 3)) + rest, expected, rtol=1e-3, atol=1e-3)


def test_the_first_token_of_a_word(model):
    found = first_tokens(model, ["fork", "dining table", "dining room"])
    for word, token in zip(found.words, found.ids.tolist(), strict=True):
        assert word.startswith(model.tokenizer.decode([token]).strip())
    assert found.shared == [("dining table", "dining room")]


def test_words_have_their_own_first_tokens_under_a_normaliser_that_prepends(model, monkeypatch):
    monkeypatch.setattr(model, "tokenizer", REAL["llama-generic"]())
    found = first_tokens(model, ["cat", "dog", "pizza", "potted plant", "pot"])
    assert [model.tokenizer.decode([i]) for i in found.ids.tolist()][:2] == ["cat", "dog"]
    assert len(found.ids.unique()) > 2, "not the piece for a space"


def test_the_probe_goes_on_without_the_image(model, pictures):
    inputs = model.inputs(pictures[:2], PROMPT)
    parser = ObjectParser.coco()
    texts = model.generate(inputs, max_new_tokens=60)
    first = [parser.mentions(t)[0].category for t in texts.texts]
    cuts = [Cut(p, t[:1], c) for p, t, c in zip(pictures[:2], texts.tokens, first, strict=True)]
    nothing = [Cut(c.image, c.prefix, "toothbrush") for c in cuts]
    assert goes_on_to_name(model, nothing, PROMPT, parser) == [False, False]
    without = image_free(model, inputs).extended([c.prefix for c in cuts])
    blind = [parser.mentions(t) for t in model.generate(without, max_new_tokens=12).texts]
    expected = [bool(m) and m[0].category == c for m, c in zip(blind, first, strict=True)]
    assert goes_on_to_name(model, cuts, PROMPT, parser) == expected


def word(push: float, wrong: bool) -> EffectRecord:
    flat = [[push, 0.0], [0.0, 0.0]]
    exact, zero = [flat, [[0.5, 0.0], [0.0, 0.0]]], [[0.0] * 2] * 2
    return EffectRecord("fork", wrong, 0, wrong, ("fork",), patched=exact, direct=zero, writes_it=zero, exact=exact)


def heads_record(*words: EffectRecord) -> HeadsRecord:
    some = [[1.0, 2.0], [3.0, 4.0]]
    mean, cosine = np.zeros((2, 2, 3)).tolist(), np.zeros((2, 2, 2)).tolist()
    return HeadsRecord(0, "greedy", "", vhd=some, image_mass=some, cosine=cosine, mean=mean, words=words)


def test_maps_by_hand():
    maps = maps_of([heads_record(word(1.0, True), word(3.0, True)), heads_record(word(5.0, False))])
    assert maps["push_hallucinated"][0, 0] == 2.0
    assert maps["push_correct"][0, 0] == 5.0
    assert maps["causal"][0, 0] == 3.0
    assert maps["image_push_correct"][0, 0] == 4.5, "with the image minus without"
    assert maps["mean"].shape == (2, 2, 3)
    nothing = maps_of([heads_record(word(5.0, False))])
    assert np.isnan(nothing["push_hallucinated"]).all()
    assert np.isnan(nothing["causal"]).all(), "half of a difference is none"


def test_a_run_and_its_going_on(tmp_path, monkeypatch):
    settings: Any = {"split": "dev", "limit": 4, "batch_size": 2, "max_new_tokens": 40}
    report = run_causal(configured(CausalConfig, out=str(tmp_path / "whole"), **settings))
    assert report is not None
    assert {"heads.npz", "causal.json", "words.jsonl", "push_correct.png", "patching.png"} <= {
        p.name for p in report.out.iterdir()
    }
    assert report.n_words["correct"] > 0
    parser, model = ObjectParser.coco(), load("testbed")
    rows = [json.loads(line) for line in (report.out / "words.jsonl").read_text().splitlines()]
    words = [w for row in rows for w in row["words"]]
    assert all(w["object"] in w["begins_as"] for w in words), "the testbed writes the categories' own names"
    assert {g for w in words if len(w["begins_as"]) > 1 for g in [tuple(w["begins_as"])]} <= {
        tuple(g) for g in first_tokens(model, parser.categories).shared
    }
    assert "attribution patching against exact silencing" in str(report)
    with np.load(report.out / "heads.npz") as maps:
        assert maps["vhd"].shape == maps["causal"].shape == (8, 8)
        assert maps["mean"].shape == (8, 8, 24)
    whole = (report.out / "words.jsonl").read_text()
    torn = tmp_path / "torn"
    run_causal(configured(CausalConfig, out=str(torn), **settings))
    (torn / "words.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]) + whole[-200:-100])
    run_causal(configured(CausalConfig, out=str(torn), **settings))
    again = [json.loads(line) for line in (torn / "words.jsonl").read_text().splitlines()]
    assert again == [json.loads(line) for line in whole.splitlines()]
    with pytest.raises(ValueError, match="other settings"):
        run_causal(configured(CausalConfig, out=str(torn), **(settings | {"seed": 1})))
    bare = run_causal(configured(CausalConfig, out=str(tmp_path / "bare"), **(settings | {"max_new_tokens": 1})))
    assert bare is not None
    assert bare.n_words == {"hallucinated": 0, "correct": 0}
    assert "nan" not in str(bare)
    with pytest.raises(ValueError, match="has no values of causal"):
        EditHeads(heads="top2", by="causal", ranking=str(bare.out / "heads.npz")).chosen(load("testbed"))
    cheap = run_causal(configured(CausalConfig, out=str(tmp_path / "cheap"), exact=False, **settings))
    assert cheap is not None
    assert cheap.agreement is None


FILES_OF_AN_ABLATION = ("captions/captions.jsonl", "likelihood.jsonl", "pope/answers.jsonl")


def test_ablate_and_sweep_commands(tmp_path, capsys):
    few = ["--limit", "4", "--batch-size", "2", "--max-new-tokens", "40"]
    out = tmp_path / "ablation"
    cli.main(["causal", "--split", "dev", "--no-exact", *few, "--out", str(tmp_path / "rank")])
    ranking = str(tmp_path / "rank" / "heads.npz")
    ask = ["--heads", "top5", "--by", "image_mass", "--ranking", ranking, "--controls", "2", "--pope-limit", "2"]
    cli.main(["ablate", *few, *ask, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "zero top5 by image_mass" in printed
    assert "2 random sets, range" in printed
    found = json.loads((out / "ablation.json").read_text())
    assert len(found["heads"]) == 5
    assert set(found["values"]) == {"greedy", "zero top5 by image_mass", "zero random seed=0", "zero random seed=1"}
    for values in found["values"].values():
        assert set(values) == {"chair_s", "chair_i", "recall", "pope_accuracy", "log_likelihood"}
    greedy, edited = (found["values"][n]["log_likelihood"]["value"] for n in ("greedy", "zero top5 by image_mass"))
    assert edited < greedy < 0, "greedy's own captions are likeliest unedited"
    assert found["values"]["greedy"]["pope_accuracy"]["value"] > 50
    ids = json.loads((out / "manifest.json").read_text())["image_ids"]
    of = {name: [json.loads(x) for x in (out / name).read_text().splitlines()] for name in FILES_OF_AN_ABLATION}
    for name in ("captions/captions.jsonl", "likelihood.jsonl"):
        assert sorted({row["image_id"] for row in of[name]}) == ids, "every measure is of the same images"
    assert sorted({int(row["image"]) for row in of["pope/answers.jsonl"]}) == ids[:2], "POPE's are the first of them"
    assert str(tmp_path) not in (out / "captions" / "manifest.json").read_text(), "a run's folder can be moved"
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    before = (out / "likelihood.jsonl").read_text()
    moved = tmp_path / "moved"
    (tmp_path / "rank" / "heads.npz").rename(tmp_path / "heads.npz")
    out.rename(moved)
    ask[ask.index(ranking)] = ranking = str(tmp_path / "heads.npz")
    cli.main(["ablate", *few, *ask, "--out", str(moved)])
    assert (moved / "likelihood.jsonl").read_text() == before, "nothing is computed twice"
    more = ["--methods", "greedy,beams:num_beams=2", "--controls", "0", "--pope-limit", "0", "--op", "image_free"]
    cli.main(["ablate", *few, "--heads", "L0H1", "--ranking", ranking, *more, "--out", str(tmp_path / "beside")])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("beams")][:1]
    assert row.split()[-2:] == ["-", "0"], "a method that is no edit has no log-likelihood"
    methods = "edit:heads=top:op=zero,edit:heads=random:op=zero:seed=0,edit:heads=random:op=zero:seed=1"
    place = ["--ranking", ranking, "--out", str(tmp_path / "sweep")]
    cli.main(["sweep", *few, "--methods", methods, "--vary", "share=0.05,0.1", *place])
    assert {"sweep.png", "sweep.csv", "summary.json"} <= {p.name for p in (tmp_path / "sweep").iterdir()}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ablate", "--data", "coco:/nowhere"], "rank the heads on other images first"),
        (["ablate", "--op", "double"], "op of EditHeads is one of scale"),
        (["ablate", "--controls", "-1"], "at least 0"),
        (["ablate", "--split", "dev"], "ranked on the images of the study"),
        (["sweep", "--vary", "alpha"], "vary takes parameter=value"),
        (["sweep", "--vary", "alpha=1", "alpha=2"], "each parameter and each of its values once"),
        (["sweep", "--methods", "vhr:alpha=2", "--vary", "alpha=1,3"], "sets alpha, which is varied"),
        (["causal", "--dtype", "foo"], "dtype is float32, bfloat16, float16 or auto"),
        (["causal", "--seed", "-1"], "seed is a number of at least 0"),
        (["causal", "--seed", str(2**70)], "seed is a number below 2^63"),
        (["causal", "--device", "cuda", "--device-map", "auto"], "device_map places the model; leave out device"),
        (["sweep", "--methods", "vcd", "--vary", "keep=1"], "vcd has none of the varied parameters keep"),
        (["causal", "--limit", "0"], "limit is a number of at least 1"),
    ],
)
def test_wrong_settings_are_told_in_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
