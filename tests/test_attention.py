import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from configured import configured
from filelock import FileLock
from PIL import Image
from test_families import PROMPTS, picture
from torch import Tensor
from zoo import build

from interp import cli
from interp.experiments import attention as survey_module
from interp.experiments.attention import ImageMeans, SurveyConfig, kind_of, run_survey, top_tokens
from interp.experiments.records import AttentionRecord, RecordFile, TokenSums, read_records
from interp.experiments.sinks import SinksConfig
from interp.experiments.sinks_report import report_sinks
from interp.metrics import attention as metrics
from interp.metrics.attention import FRACTIONS, RECALLS, sparsity
from interp.models import LVLM, AttentionCall, Head, Inputs, load, read
from interp.models.compat import attention_backend
from interp.models.layout import Piece
from interp.testbed.draw import draw
from interp.testbed.world import CELL, scene
from interp.trace.attention import attention_statistics, token_kinds
from interp.trace.sinks import inside, sequences
from interp.views.overlay import find_word, overlay, spread

IMAGE, PROMPT, GENERATED = range(3)
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}


def test_sparsity_of_a_row_by_hand():
    """Keys 0.4 (first), 0.1, 0.3, 0.2: half of them hold 0.7; without the first, half of three is two: 0.5 of 0.6."""
    pattern = torch.tensor([[[[0.4, 0.1, 0.3, 0.2]]]])
    kinds = torch.tensor([[PROMPT, IMAGE, IMAGE, GENERATED]])
    found = sparsity(pattern, torch.tensor([[4]]), torch.tensor([0]), kinds)
    half, tenth = FRACTIONS.index(0.5), FRACTIONS.index(0.1)
    torch.testing.assert_close(found.recall[0, 0, 0, [tenth, half]], torch.tensor([0.4, 0.7]))
    torch.testing.assert_close(found.recall_rest[0, 0, 0, [tenth, half]], torch.tensor([0.5, 5 / 6]))
    torch.testing.assert_close(found.share[0, 0, 0], torch.tensor([0.75, 1.0, 1.0]))
    torch.testing.assert_close(found.share_rest[0, 0, 0], torch.ones(3))
    torch.testing.assert_close(found.kept[0, 0, 0, half], torch.tensor([0.5, 0.5, 0.0]))


def test_a_row_with_nothing_but_the_first_token_has_no_rest():
    found = sparsity(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[1]]), torch.tensor([0]), torch.tensor([[1, 1]]))
    assert found.recall_rest.isnan().all()
    assert found.share_rest.isnan().all()
    assert found.share[0, 0, 0].tolist() == [1.0] * 3


def slow_sparsity(row: Tensor, first: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """One row, key by key."""

    def curves(values: list[float]) -> tuple[list[float], list[float]]:
        ranked, total = sorted(values, reverse=True), sum(values)
        if not total:
            return [math.nan] * len(FRACTIONS), [math.nan] * len(RECALLS)
        recall = [sum(ranked[: max(1, math.ceil(f * len(ranked) - 1e-9))]) / total for f in FRACTIONS]
        share = []
        for wanted in RECALLS:
            held, n = 0.0, 0
            while held < wanted * total - 1e-7 and n < len(ranked):
                held, n = held + ranked[n], n + 1
            share.append(n / len(ranked))
        return recall, share

    values = row.double().tolist()
    return *curves(values), *curves(values[:first] + values[first + 1 :])


def full_maps(model: LVLM, inputs: Inputs) -> Tensor:
    with torch.no_grad(), attention_backend(model.decoder_configs, "eager"):
        out = model.hf(**inputs.kwargs(), output_attentions=True, return_dict=True)
    return torch.stack((getattr(out, "language_model_outputs", None) or out).attentions, 1).float()


@pytest.mark.parametrize("name", ["testbed", "llava-next", "blip-2", "qwen2.5-vl", "gemma3", "paligemma", "mistral3"])
def test_streamed_statistics_equal_those_of_full_maps(name, model):
    """Padded rows, grouped queries, holes in the mask, bidirectional image tokens: one by one, from eager's maps."""
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1, 40, 60)], PROMPTS)
    captions = lvlm.generate(inputs, max_new_tokens=5, min_new_tokens=5).tokens
    whole = inputs.extended(captions)
    stats = attention_statistics(lvlm, whole, 5, block=7)
    maps = full_maps(lvlm, whole)
    kinds, real = token_kinds(whole, 5), whole.attention_mask.bool()
    for row in range(2):
        asks = real[row].nonzero()[:, 0].tolist()
        a = maps[row][:, :, real[row]]  # [layer, head, query, key]
        torch.testing.assert_close(stats.received_sum[row], a.sum(2), **CLOSE)
        for kind in range(3):
            torch.testing.assert_close(
                stats.mass[row][:, :, real[row], kind], a[..., kinds[row] == kind].sum(-1), **CLOSE
            )
        torch.testing.assert_close(
            stats.entropy[row][:, :, real[row]], -torch.xlogy(a, a).sum(-1), rtol=1e-4, atol=1e-5
        )
        visible = a[0, 0] > 0  # no probability underflows in models this small
        torch.testing.assert_close(stats.seen_by[row, 0], visible.sum(0).float())
        groups = [kinds[row, q] == GENERATED for q in asks]
        slow = [
            slow_sparsity(a[1, 2, i][visible[i]], int(visible[i].nonzero()[0, 0] != asks[0]) * 10**6)
            for i in range(len(asks))
        ]
        for group in range(2):
            mine = [s for s, generated in zip(slow, groups, strict=True) if generated == bool(group) and len(s[0])]
            for part, values in enumerate((stats.recall, stats.share)):
                expected = np.mean([s[part] for s in mine], 0)
                np.testing.assert_allclose(values[row, 1, 2, group], expected, rtol=1e-4, atol=1e-5)
        mine = [s for s, generated in zip(slow, groups, strict=True) if generated]
        np.testing.assert_allclose(stats.recall_rest[row, 1, 2, 1], np.nanmean([s[2] for s in mine], 0), rtol=1e-4)
        np.testing.assert_allclose(stats.share_rest[row, 1, 2, 1], np.nanmean([s[3] for s in mine], 0), rtol=1e-4)


def test_the_size_of_a_block_does_not_matter(model, inputs):
    one, other = (attention_statistics(model, inputs, block=block) for block in (5, 1000))
    for name in ("received_sum", "mass", "entropy", "recall", "share_rest", "kept"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True, **CLOSE)
    assert attention_statistics(model, inputs, with_sparsity=False).recall.shape[-1] == 0


def test_generated_rows_are_those_of_the_decode_steps(model, inputs):
    """A teacher-forced pass over the caption measures what the cached steps attend to."""
    with torch.no_grad(), attention_backend(model.decoder_configs, "eager"):
        out = model.hf.generate(
            **inputs.kwargs(),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    n = inputs.input_ids.shape[1]
    whole = inputs.extended(list(out.sequences[:, n:]))
    stats = attention_statistics(model, whole, 6)
    for step in range(1, 6):
        a = torch.stack(out.attentions[step], 1)[:, :, :, 0]  # the query is token step - 1
        expected = torch.stack([a[row, :, :, inputs.image_mask[row].nonzero()[:, 0]].sum(-1) for row in range(4)])
        torch.testing.assert_close(stats.image_mass[..., n + step - 1], expected, rtol=1e-4, atol=1e-5)


def test_saliency_and_sink_weights_by_hand():
    paid = torch.tensor([[[0.0, 0.0, 0.0], [0.0, math.log(2), math.log(3)]]])
    real = torch.tensor([[True, True, True]])
    torch.testing.assert_close(metrics.saliency(paid, real), torch.tensor([[1 / 6, 2 / 6, 3 / 6]]))
    assert metrics.saliency(paid, torch.tensor([[False, True, True]]))[0].tolist() == pytest.approx([0, 0.4, 0.6])
    root = torch.tensor([1.0, 2**0.5, 3**0.5])
    torch.testing.assert_close(metrics.saliency(paid, real, "mean")[0], root / root.sum())
    torch.testing.assert_close(metrics.sink_weights(paid, real)[0, 1], torch.tensor([1 / 6, 2 / 6, 3 / 6]))
    with pytest.raises(ValueError, match="last head or the mean"):
        metrics.saliency(paid, real, "first")


def test_without_positions_a_repeated_token_attends_evenly():
    """`A[t, k] = 1/t`: equal queries and keys cannot tell one key from another."""
    x = torch.ones(1, 1, 8, 4)
    pattern = AttentionCall(x, x, x, None, 0.5).pattern()[0, 0]
    expected = torch.tril(torch.ones(8, 8)) / torch.arange(1, 9)[:, None]
    torch.testing.assert_close(pattern, expected)
    harmonic = sum(1 / t for t in range(1, 9)) / 8
    assert metrics.received(pattern)[0].item() == pytest.approx(harmonic, rel=1e-6)
    assert metrics.sink_rate(pattern, 0, eps=harmonic + 1e-6) == 0
    assert metrics.sink_rate(pattern, 0, eps=harmonic - 1e-6) == 100


def test_the_inside_of_tokens_equals_a_slow_computation(model, inputs):
    look = inside(model, inputs)
    found = read(model, inputs, ["resid_pre", "q", "k", "v"])
    torch.testing.assert_close(look.hidden_norm, found["resid_pre"].norm(dim=-1))
    torch.testing.assert_close(look.massive, found["resid_pre"].abs().amax(-1))
    torch.testing.assert_close(look.value_norm, found["v"].norm(dim=-1).transpose(2, 3))
    real = inputs.attention_mask.bool()
    for row, layer, head, token in [(0, 2, 3, 70), (1, 5, 0, 66), (3, 7, 7, 74)]:
        key = found["k"][row, layer, token, head]
        asks = [q for q in range(token, real.shape[1]) if real[row, q]]
        cosines = [torch.cosine_similarity(found["q"][row, layer, q, head], key, dim=0).item() for q in asks]
        assert look.cosine[row, layer, head, token].item() == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_planted_sink_is_found_and_none_is_made_up(model):
    planted = load("testbed-sink")
    config = SinksConfig(inputs="natural,repeated", n=16)
    with_sink, without = report_sinks(planted, config), report_sinks(model, config)
    assert with_sink.rows[0].sink_1.mean > 15 > 5 > without.rows[0].sink_1.mean
    assert with_sink.rows[1].sink_1.mean == 0, "a repeated token has no first among equals"
    assert with_sink.heads["natural"].shape == (planted.n_layers, planted.n_heads)


def test_the_kinds_of_input(model):
    for kind in ("natural", "random", "chat"):
        inputs = sequences(model, kind, 3, 20)
        assert inputs.input_ids.shape == (3, 20)
        assert (inputs.input_ids[:, 0] == model.tokenizer.bos_token_id).all()
        assert len({tuple(row.tolist()) for row in inputs.input_ids}) == 3
    repeated = sequences(model, "repeated", 3, 20).input_ids
    assert (repeated == repeated[:, :1]).all()
    assert torch.equal(
        sequences(model, "random", 3, 20, seed=1).input_ids, sequences(model, "random", 3, 20, 1).input_ids
    )
    with pytest.raises(ValueError, match=r"the text has \d tokens; a sequence needs 20"):
        sequences(model, "natural", 3, 20, text=" a fork is here")
    with pytest.raises(ValueError, match="of the kinds natural, random, repeated, chat"):
        SinksConfig(inputs="natural,foo")


@pytest.mark.parametrize("name", ["gpt2", "gemma3-text", "qwen3"])
def test_sinks_of_text_models(name):
    report = report_sinks(load(*build(name)), SinksConfig(inputs="random,repeated", n=4, length="32"))
    assert [row.kind for row in report.rows] == ["random", "repeated"]
    assert all(0 <= row.sink_1.mean <= 100 for row in report.rows)


def test_attention_spreads_over_its_pieces():
    """A grid of 2 x 2 over the picture and one token over its right half: mass per area, added up."""
    pieces = [
        Piece(np.array([[0, 1], [2, 3]]), (0.0, 0.0, 1.0, 1.0)),
        Piece(np.array([[4]]), (0.5, 0.0, 1.0, 1.0)),
    ]
    heat = spread(pieces, np.array([0.1, 0.2, 0.0, 0.3, 0.4]), (8, 4))
    assert heat.shape == (4, 8)
    assert heat.sum() == pytest.approx(1.0)
    assert heat[0, 0] == pytest.approx(0.1 / 8)
    assert heat[3, 7] == pytest.approx(0.3 / 8 + 0.4 / 16)


def test_heads_look_at_what_they_are_about_to_name(model):
    """On scenes of known truth: the cell of the thing named next, a ninth of the picture, gets more than its share."""
    middle = [Head(layer, head) for layer in (3, 4, 5) for head in range(model.n_heads)]
    shares, mirrored = [], []
    for i in range(6):
        drawn = scene("unbiased", "test", i)
        inputs = model.inputs([Image.fromarray(draw(drawn))], "Please describe this image in detail.")
        caption = model.generate(inputs).tokens[0]
        text = model.tokenizer.decode(caption)
        for thing in drawn.things:
            if f" {thing.category} " in text:
                heat = overlay(model, inputs, caption, thing.category, middle).heat[0]
                x, y = thing.column * CELL, thing.row * CELL
                shares.append(heat[y : y + CELL, x : x + CELL].sum() / heat.sum())
                mirrored.append(heat[x : x + CELL, y : y + CELL].sum() / heat.sum())
    assert len(shares) > 8
    assert np.mean(shares) > 1.5 / 9, f"evenly spread would be 0.11; {np.round(shares, 2)}"
    assert np.mean(shares) > np.mean(mirrored), "rows and columns are not swapped"


def test_an_overlay_without_sinks_leaves_them_out():
    planted = load("testbed-sink")
    inputs = planted.inputs(
        [Image.fromarray(draw(scene("broken", "test", 0)))], "Please describe this image in detail."
    )
    caption = planted.generate(inputs).tokens[0]
    word = planted.tokenizer.decode(caption).split()[1]
    plain = overlay(planted, inputs, caption, word)
    without = overlay(planted, inputs, caption, word, without_sinks=True)
    assert plain.heat[0].sum() == pytest.approx(plain.image_mass, abs=1e-6)
    assert without.image_mass > plain.image_mass, "the sink is a text token, so the picture's share grows"


def test_words_and_heads_that_are_not_there_are_refused(model, pictures):
    inputs = model.inputs(pictures[:1], PROMPTS[0])
    caption = model.encode(" A fork is on the table, and a knife.")
    assert model.tokenizer.decode(caption[find_word(model, caption, "knife")]).strip()[0] == "k"
    with pytest.raises(ValueError, match="does not say 'zebra': 'A fork"):
        overlay(model, inputs, caption, "zebra")
    with pytest.raises(ValueError, match="heads L0H0 to L7H7, got L9H0"):
        overlay(model, inputs, caption, "fork", [Head(9, 0)])
    with pytest.raises(ValueError, match="batch of one, got 2"):
        overlay(model, model.inputs(pictures[:2], PROMPTS[0]), caption, "fork")


def attention_record(image: int, value: np.ndarray) -> AttentionRecord:
    return AttentionRecord(image, "greedy", 3, {"x": value}, (TokenSums("a", "word", 1, 0.5, 0.0, 0.0),))


def test_means_over_images_and_their_standard_errors(tmp_path):
    values = np.array([[1.0, np.nan], [2.0, 4.0], [6.0, np.nan]], dtype=np.float32)
    records = [attention_record(i, value) for i, value in enumerate(values)]
    RecordFile(tmp_path / "a.jsonl", AttentionRecord).append(records)
    again = read_records(tmp_path / "a.jsonl", AttentionRecord)
    np.testing.assert_array_equal([r.arrays["x"] for r in again], values)
    assert [r.tokens for r in again] == [r.tokens for r in records]
    means = ImageMeans(again)
    np.testing.assert_allclose(means.mean("x"), [3.0, 4.0])
    assert means.standard_error("x")[0] == pytest.approx(np.std(values[:, 0], ddof=1) / 3**0.5)
    assert np.isnan(means.standard_error("x")[1]), "one image has no error"


def test_tokens_are_named_added_up_and_ranked():
    assert kind_of("<s>", False, True) == "special"
    assert kind_of(" .", False, False) == "punctuation"
    assert kind_of(" fork", False, False) == "word"
    assert kind_of("<image>", True, True) == "image"
    begin = TokenSums("<s>", "special", 10, 4.0, 5.0, 0.5, position=0)
    (found,) = top_tokens([begin, TokenSums(" a", "word", 1, 0.9, 0.9, 0.0), begin], 20)
    assert (found.text, found.received, found.sink) == ("<s>", 0.4, 0.5), "a token of one image in twenty is left out"


def test_an_interrupted_survey_goes_on(tmp_path, monkeypatch):
    settings: Any = {"limit": 6, "batch_size": 2, "max_new_tokens": 8}
    unbroken = run_survey(configured(SurveyConfig, **settings, out=str(tmp_path / "one")))
    calls = []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attention_statistics(*args, **options)

    monkeypatch.setattr(survey_module, "attention_statistics", failing)
    other = configured(SurveyConfig, **settings, out=str(tmp_path / "two"))
    with pytest.raises(KeyboardInterrupt):
        run_survey(other)
    again = run_survey(other)
    assert len(calls) == 4, "the first batch was not measured again"
    assert unbroken is not None
    assert again is not None
    for name in ("attention.jsonl", "attention.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    summary = json.loads((tmp_path / "two" / "attention.json").read_text())
    assert summary["n_images"] == 6
    assert {p.stem for p in (tmp_path / "two").glob("*.png")} == {"sparsity", "sink", "image_mass", "top_tokens"}
    assert {p.stem for p in (tmp_path / "two").glob("*.npz")} >= {"sparsity", "sink", "image_mass"}
    total = sum(again.means.mean("recall")[0, 0, 1, -1:])
    assert 0 < total <= 1 + 1e-6
    with FileLock(tmp_path / "two" / ".lock"), pytest.raises(ValueError, match="another run is writing to"):
        run_survey(other)


def test_attention_commands(tmp_path, pictures, capsys):
    photo = tmp_path / "photo.png"
    pictures[0].save(photo)
    cli.main(["sinks", "--inputs", "random,repeated", "--n", "4", "--length", "16", "--out", str(tmp_path / "sinks")])
    assert "repeated" in capsys.readouterr().out
    assert json.loads((tmp_path / "sinks" / "sinks.json").read_text())["rows"][1]["kind"] == "repeated"
    drawn = tmp_path / "overlay.png"
    args = ["overlay", "--image", str(photo), "--token", "is", "--nth", "1", "--heads", "L5H7,L4H7"]
    args += ["--out", str(drawn)]
    cli.main(args)
    assert "% of the attention is on the picture" in capsys.readouterr().out
    assert drawn.exists()
    assert np.load(drawn.with_suffix(".npz"))["heat"].shape == (96, 96)
    cli.main(["attention", "--limit", "2", "--max-new-tokens", "4", "--out", str(tmp_path / "survey")])
    assert "mass held by the top share of the keys" in capsys.readouterr().out
    for args, message in (
        (["sinks", "--inputs", "foo"], "of the kinds natural"),
        (["attention", "--eps", "2"], "eps lies between 0 and 1"),
        (["overlay", "--image", str(photo), "--token", "zebra"], "does not say 'zebra'"),
        (["overlay", "--image", str(photo), "--token", "is", "--heads", "5.7"], "written like L12H5"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
