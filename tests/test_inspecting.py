"""The logit lens, patching between inputs, gradients, the detector, and taking up what a study wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configured import configured
from test_families import PROMPTS, picture
from zoo import build

from interp import cli
from interp.attribution.lens import lens
from interp.attribution.patching import first_order, logit_difference, patch
from interp.cli.inspecting import Lens, Patch
from interp.cli.looking import Heads, Overlay
from interp.cli.options import UncheckedModel
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.written import WrittenRun
from interp.interventions.directions import Direction
from interp.metrics.detection import cross_validated, ridge_logistic
from interp.metrics.ranking import auroc
from interp.models import Head, differentiable, head_results, image_free, load, read, run_with_edits
from interp.views.lens import look_through

CLOSE: Any = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    run_study(configured(StudyConfig, methods="greedy", limit=12, batch_size=6, max_new_tokens=60, out=str(out)))
    return out


def test_heads_are_written_one_way():
    expected = (Head(5, 7), Head(4, 2))
    for written in ("L5H7,L4H2", " l5h7 , L4H2,L5H7", "L5H7+L4H2", [(5, 7), "L4H2"], [Head(5, 7), Head(4, 2)]):
        assert Head.parse_list(written) == expected, written
    assert Head.parse_list((5, 7)) == Head.parse_list("L5H7") == (Head(5, 7),)
    for wrong in ("", "5.7", "L5H7;L4H2", [(-1, 0)]):
        with pytest.raises(ValueError, match="written like"):
            Head.parse_list(wrong)


@pytest.mark.parametrize("name", ["testbed", "gemma3", "blip-2", "gpt-neox", "gpt2", "opt"])
def test_sites_that_transformerlens_names(name, model):
    lvlm = model if name == "testbed" else load(*build(name))
    seen = [picture(0)] if lvlm.family.has_vision else None
    inputs = lvlm.inputs(seen, PROMPTS[0])
    names = ["hook_embed", "blocks.1.mlp.hook_post", "blocks.1.attn.hook_result", "ln_final.hook_normalized", "mlp_out"]
    found = read(lvlm, inputs, [*names, "z", "resid_pre", "attn_out", "logits"])
    assert torch.equal(found["hook_embed"], found["resid_pre"][:, 0])
    down = lvlm.part(1, lvlm.family.mlp_down)
    neurons = found["blocks.1.mlp.hook_post"]
    assert neurons.shape[:2] == inputs.input_ids.shape
    if lvlm.family.mlp_out in (lvlm.family.mlp_down, "mlp"):  # no norm in between
        torch.testing.assert_close(down(neurons), found["mlp_out"][:, 1], **CLOSE)
    results = found["blocks.1.attn.hook_result"]
    torch.testing.assert_close(results, head_results(lvlm, found["z"][:, 1], 1), **CLOSE)
    bias = getattr(lvlm.out_proj(1), "bias", None)
    if lvlm.family.attention_out in ("self_attn", "attn", "attention"):
        torch.testing.assert_close(results.sum(2) + (0 if bias is None else bias), found["attn_out"][:, 1], **CLOSE)
    logits = lvlm.hf.get_output_embeddings()(found["ln_final.hook_normalized"])
    torch.testing.assert_close(logits, found["logits"], **CLOSE)
    with pytest.raises(ValueError, match="can only be read; edit z"):
        run_with_edits(lvlm, inputs, {"result": lambda _, x: x})
    silent = run_with_edits(lvlm, inputs, {"blocks.1.mlp.hook_post": lambda _, x: 0 * x})
    assert not torch.equal(silent, found["logits"][:, -1:])


@pytest.mark.parametrize("name", ["testbed", "qwen2.5-vl", "gpt2"])
def test_slopes_are_difference_quotients(name, model):
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0)] if lvlm.family.has_vision else None, PROMPTS[0])
    sites = ["z", "blocks.1.resid_post", "pattern", "mlp_post"]
    graph = differentiable(lvlm, inputs, sites)
    torch.testing.assert_close(graph.logits.detach(), run_with_edits(lvlm, inputs, {}), **CLOSE)
    slopes = graph.slopes(graph.logits[0, -1, 7] - graph.logits[0, -1, 9])
    plain = read(lvlm, inputs, sites)
    step = 1e-2
    for site in sites:
        torch.testing.assert_close(graph.values[site], plain[site], **CLOSE)
        assert slopes[site].shape == plain[site].shape
        direction = torch.randn(plain[site].shape, generator=torch.Generator().manual_seed(0)) * plain[site].abs()
        ends = []
        for sign in (step, -step):

            def move(layer: int, x: torch.Tensor, sign: float = sign, d: torch.Tensor = direction) -> torch.Tensor:
                return x + sign * (d[:, layer] if site != "blocks.1.resid_post" else d)  # noqa: B023

            logits = run_with_edits(lvlm, inputs, {site: move})[0, -1]
            ends.append(logits[7] - logits[9])
        expected = float(ends[0] - ends[1]) / (2 * step)
        assert float((slopes[site] * direction).sum()) == pytest.approx(expected, rel=0.05, abs=2e-2), site
    assert not any(p.grad is not None for p in lvlm.hf.parameters())
    with pytest.raises(ValueError, match="one number made of"):
        graph.slopes(torch.tensor(1.0))
    with pytest.raises(ValueError, match="no place to differentiate by"):
        differentiable(lvlm, inputs, "result")


@pytest.mark.parametrize("name", ["testbed", "gemma3", "blip-2", "gemma2-text"])
def test_the_lens_after_the_last_layer_is_the_model(name, model):
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0)] if lvlm.family.has_vision else None, PROMPTS[0])
    logits = read(lvlm, inputs, "logits")["logits"].float()
    found = lens(lvlm, inputs, top=3)
    best = logits.softmax(-1).topk(3)
    real = inputs.attention_mask[0].bool()
    assert torch.equal(found.ids[0, -1][real], best.indices[0][real])
    torch.testing.assert_close(found.score[0, -1][real], best.values[0][real], **CLOSE)
    first = lens(lvlm, inputs, "resid_pre", top=3)
    assert torch.equal(first.ids[:, 1:], found.ids[:, :-1])


def test_what_is_added_adds_up_to_the_logits(model, inputs):
    """Over all parts, the centred logits of a word are those of the model."""
    places, words = inputs.last[:, None], ["fork", "knife", "cat"]
    parts = {site: lens(model, inputs, site, places, words=words, top=3) for site in ("attn_out", "mlp_out", "result")}
    scores = {site: torch.zeros(3) for site in parts}
    for site, found in parts.items():
        ids = found.ids[0].reshape(-1, 3)
        order = ids.argsort(-1)
        scores[site] = found.score[0].reshape(-1, 3).gather(-1, order).sum(0)
    torch.testing.assert_close(scores["attn_out"], scores["result"], rtol=1e-3, atol=1e-3)
    final = lens(model, inputs, "resid_post", places, words=words, top=3)
    log_p = final.score[0, -1, 0].gather(-1, final.ids[0, -1, 0].argsort()).log()
    embed = read(model, inputs, ["hook_embed", "resid_post"], positions=places)
    last = embed["resid_post"][:1, -1]
    slope = model.hf.model.language_model.norm(last) / last
    weight = model.hf.get_output_embeddings().weight[final.ids[0, -1, 0].sort().values]
    start = ((embed["hook_embed"][:1] * slope) @ weight.T)[0, 0]
    total = scores["attn_out"] + scores["mlp_out"] + start - start.mean()
    torch.testing.assert_close(total, log_p - log_p.mean(), rtol=1e-3, atol=2e-3)
    assert set(final.texts.values()) == set(words)
    with pytest.raises(ValueError, match="a lens looks at"):
        lens(model, inputs, "pattern")
    with pytest.raises(ValueError, match="top is between 1 and the 3"):
        lens(model, inputs, words=words, top=4)


def test_patching_brings_over_what_it_puts_over(model, pictures):
    one, other = (model.inputs([p], "Is there a fork in the image?") for p in pictures[:2])
    yes, no = (int(model.encode(w)[0]) for w in ("Yes", "No"))
    metric = logit_difference(yes, no)
    ends = [metric(run_with_edits(model, x, {})[:, -1]) for x in (one, other)]
    whole = patch(model, one, other, metric, site="resid_post", over="layer")
    torch.testing.assert_close(whole.target, ends[0])
    torch.testing.assert_close(whole.source, ends[1])
    assert whole.effect.shape == (1, model.n_layers, 1)
    torch.testing.assert_close(whole.effect, torch.ones_like(whole.effect), **CLOSE)
    last = patch(model, one, other, metric, site="resid_post", over="position", positions=[-1, -2])
    assert last.columns == (-1, -2)
    torch.testing.assert_close(last.effect[0, -1], torch.tensor([1.0, 0.0]), **CLOSE)
    heads = patch(model, one, other, metric, positions=[-1])
    z = read(model, other, "z", positions=other.last[:, None])["z"]

    def edit(_: int, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, -1, 3] = z[:, 5, 0, 3]
        return x

    by_hand = metric(run_with_edits(model, one, {"blocks.5.z": edit})[:, -1])
    torch.testing.assert_close(heads.effect[:, 5, 3], (by_hand - ends[0]) / (ends[1] - ends[0]), **CLOSE)
    same = patch(model, one, one, metric, over="layer")
    assert same.effect.isnan().all(), "nothing to bring over"


def test_first_order_patching_is_the_limit_of_small_differences(model, pictures):
    one, other = (model.inputs([p], "Is there a fork in the image?") for p in pictures[:2])
    near = model.inputs([pictures[0].copy()], "Is there a fork in the image?")
    pixels = {k: v + 0.02 * (other.pixels[k] - v) for k, v in one.pixels.items()}
    near = type(near)(**{**vars(near), "pixels": pixels})
    metric = logit_difference(*(int(model.encode(w)[0]) for w in ("Yes", "No")))
    for over in ("head", "layer", "position"):
        positions = [-1, -2] if over == "position" else None
        exact = patch(model, one, near, metric, over=over, positions=positions)
        cheap = first_order(model, one, near, metric, over=over, positions=positions)
        assert cheap.effect.shape == exact.effect.shape
        torch.testing.assert_close(cheap.effect, exact.effect, rtol=0.1, atol=0.02)


def test_inputs_that_do_not_correspond_are_refused(model, pictures):
    one = model.inputs(pictures[:1], PROMPTS[0])
    metric = logit_difference(5, 6)
    with pytest.raises(ValueError, match="name the positions that correspond"):
        patch(model, one, image_free(model, one), metric)
    patch(model, one, image_free(model, one), metric, over="layer", positions=[-1, -2])
    wrong: Any = (
        ({"site": "pattern"}, "patching puts"),
        ({"site": "attn_out"}, "has no heads"),
        ({"positions": [0]}, "positions are different numbers"),
    )
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            patch(model, one, one, metric, **options)
    with pytest.raises(ValueError, match="as many rows"):
        patch(model, one, model.inputs(pictures[:2], PROMPTS[0]), metric)


def test_ridge_logistic_regression_by_hand():
    """One feature of two values and no penalty: the log-odds of the two groups."""
    x = np.array([[0.0]] * 4 + [[1.0]] * 4)
    y = np.array([True, False, False, False, True, True, True, False])
    weights, intercept = ridge_logistic(x, y, np.array([1e-9]))
    assert intercept == pytest.approx(-np.log(3), abs=1e-4)
    assert weights[0] == pytest.approx(2 * np.log(3), abs=1e-4)
    heavy, _ = ridge_logistic(x, y, np.array([1e6]))
    assert abs(heavy[0]) < 1e-4


def test_a_detector_finds_what_is_there_and_nothing_else():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    y = random.random(300) < 0.3
    noise = random.normal(size=(300, 400))
    told = noise + 2.0 * y[:, None] * (np.arange(400) < 3)
    assert (auroc(cross_validated([told], y, groups), y) or 0) > 0.8
    assert 0.35 < (auroc(cross_validated([noise], y, groups), y) or 0) < 0.65
    by_group = random.normal(size=(60, 400))[groups]  # tells the picture, and pictures are held out
    y_group = (random.random(60) < 0.5)[groups]
    assert 0.25 < (auroc(cross_validated([by_group], y_group, groups), y_group) or 0) < 0.75
    with pytest.raises(ValueError, match="needs as many pictures"):
        cross_validated([noise], y, np.zeros(300, dtype=int))
    with pytest.raises(ValueError, match="hallucinated and correct"):
        cross_validated([noise], np.zeros(300, dtype=bool), groups)


def test_a_study_is_taken_up_with_its_own_tokens(study, model, capsys):
    run = WrittenRun.read(study)
    image_id = next(iter(run.captions))
    written = run.caption(image_id)
    inputs = model.inputs([run.sample(image_id).image], run.prompt)
    assert torch.equal(model.generate(inputs, max_new_tokens=60).tokens[0], written.tokens)
    Heads(run=str(study), image_id=str(image_id))()
    own = capsys.readouterr().out
    record = json.loads((study / "captions.jsonl").read_text().splitlines()[0])
    assert record["image_id"] == image_id
    last = [line for line in own.splitlines() if line.strip()][-1]
    assert float(last.split()[-1]) == pytest.approx(record["probability"][-1], abs=2e-3)
    wrong: Any = (
        ({"image_id": "-1"}, "has no caption of image -1"),
        ({"image_id": "0", "method": "vhr"}, "has captions of greedy, got 'vhr'"),
        ({}, "either --image FILE, or --run DIR"),
        ({"image_id": str(image_id), "model": UncheckedModel(model="testbed-sink")}, "brings its own model"),
    )
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Heads(run=str(study), **options)()


def test_commands_look_inside(study, tmp_path, pictures, capsys):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, shown in zip(files, pictures, strict=False):
        shown.save(file)
    image_id = str(next(iter(WrittenRun.read(study).captions)))
    Lens(run=str(study), image_id=image_id, out=str(tmp_path / "lens"))()
    assert "layer 7" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "lens").iterdir()} >= {"lens.csv", "lens.npz", "lens.png"}
    Lens(image=str(files[0]), over="image", words="categories", layer=3)()
    assert len(capsys.readouterr().out.splitlines()) == 9, "a grid of eight rows"
    Patch(image=str(files[0]), source=str(files[1]), out=str(tmp_path / "patch"))()
    assert "strongest of 64 places" in capsys.readouterr().out
    Patch(image=str(files[0]), site="resid_post", over="position", positions="-1,-2", cheap=True)()
    assert "L7 position -1" in capsys.readouterr().out
    for wrong, message in (
        (lambda: Patch(image=str(files[0]), word="Yes", against="Yes")(), "same token"),
        (lambda: Lens(image=str(files[0]), layer=8)(), "layers 0 to 7"),
        (lambda: Overlay(image=str(files[0]), token="a", caption="A fork and a knife.")(), "2 times, choose with nth"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_lens_view_of_the_picture_follows_its_layout(model, pictures):
    inputs = model.inputs(pictures[:1], PROMPTS[0])
    view = look_through(model, inputs, torch.zeros(0, dtype=torch.long), over="image", words=["fork", "knife"], top=1)
    assert [g.shape for g in view.grids] == [(8, 8)]
    places = inputs.image_mask[0].nonzero()[:, 0]
    assert torch.equal(view.lens.positions[0], places)
    said = view.words_on(0, 3)
    assert [w.word for w in said] == [w.strip() for w in view.words(3)]
    assert said[9][2:] == (1.5 / 8, 1.5 / 8)


def test_a_direction_from_a_run_is_the_difference_of_means(study, model, tmp_path):
    """One caption after another; a word's step is the position before its first token."""
    run = WrittenRun.read(study)
    found: dict[Any, list[torch.Tensor]] = {False: [], True: [], "with": [], "without": []}
    for caption in run.captions.values():
        inputs = model.inputs([run.sample(caption.image_id).image], run.prompt)
        stream = read(model, inputs.extended([caption.tokens]), "resid_post")["resid_post"][0, 4]
        for m in caption.mentions:
            found[m.hallucinated].append(stream[inputs.input_ids.shape[1] - 1 + m.token])
        found["with"].append(read(model, inputs, "resid_post")["resid_post"][0, 4, -1])
        found["without"].append(read(model, image_free(model, inputs, "remove"), "resid_post")["resid_post"][0, 4, -1])
    for of, plus, minus in (("words", False, True), ("pictures", "with", "without")):
        cli.main(["direction", str(study), "--layer", "4", "--of", of, "--out", str(tmp_path / f"{of}.npz")])
        expected = torch.stack(found[plus]).mean(0) - torch.stack(found[minus]).mean(0)
        made = Direction.read(tmp_path / f"{of}.npz")
        assert made.layer == 4
        torch.testing.assert_close(made.vector, expected.float(), rtol=1e-3, atol=1e-3)


def test_detect_compares_with_the_baselines(study, tmp_path, capsys):
    again = shutil.copytree(study, tmp_path / "again")
    cli.main(["detect", str(study), str(again), "--out", str(tmp_path / "found")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "detector.json").read_text())
    assert {"position", "probability", "word", "T-VHD", "residual stream"} <= set(found["auroc"])
    assert "position + probability + residual stream" in found["beyond_the_baseline"]
    assert found["n_words"]["hallucinated"] > 0
    assert "beyond the baseline" in printed
    with np.load(tmp_path / "found" / "detector.npz") as arrays:
        scores, wrong, pictures = arrays["score: T-VHD"], arrays["hallucinated"], set(arrays["image_id"].tolist())
    captions = WrittenRun.read(study).captions
    named = {i for i, c in captions.items() if c.mentions}
    assert pictures == {f"{folder}/{i}" for folder in (study.name, "again") for i in named}
    assert len(wrong) == 2 * sum(len(c.mentions) for c in captions.values())
    assert auroc(scores, wrong) == pytest.approx(found["auroc"]["T-VHD"]["value"])
