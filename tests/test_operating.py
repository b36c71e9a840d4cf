"""The operating curve, d' and criterion of a study, from captions made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from interp import plots
from interp.cli import main
from interp.evaluate.chair import rates
from interp.experiments.captions import StudyConfig
from interp.experiments.operating import BIASES, chair_i_at, methods_of, operating_curve, points_of
from interp.experiments.records import CaptionRecord, MentionRecord
from interp.experiments.report import summarised
from interp.interventions import StopBias, TokenBias, parse_method
from interp.metrics.signal_detection import sensitivity

POINTS = points_of("stopping")


def caption(image_id: int, method: str, truth: str, named: str) -> CaptionRecord:
    """A caption that names some objects; letters are objects."""
    mentions = tuple(MentionRecord(x, x, x not in truth, 2 * i, 2 * i + 1, i, 1) for i, x in enumerate(named))
    text = " ".join(named)
    return CaptionRecord(image_id, method, text, mentions, tuple(truth), len(named), 0.1, 10, list(range(len(named))))


def study(methods: dict[str, list[str]], truths: list[str], points: dict[str, list[str]] | None = None):
    every = {**methods, **(points or {})}
    records = [caption(i, m, truths[i], said) for m, texts in every.items() for i, said in enumerate(texts)]
    return summarised(records, list(methods), Path("nowhere"), top_k=1, seed=0, knob="stopping" if points else None)


def test_every_method_has_d_prime_and_criterion():
    truths = ["ab", "bc", "cd"]
    found = study({"greedy": ["ab", "bd", "cd"], "vhr": ["abd", "bcd", "cd"]}, truths)
    assert found.n_objects == 4
    # greedy names 5 of 6 present and 1 of 6 absent ones, the other all and 2
    for name, counts in (("greedy", [5.0, 6, 1, 6]), ("vhr", [6.0, 6, 2, 6])):
        for column, value in sensitivity(np.array(counts)).items():
            assert found.methods[name][column].value == pytest.approx(float(value))
    both = found.as_json()["methods"]
    difference = found.methods["vhr"]["d_prime"].value - found.methods["greedy"]["d_prime"].value
    assert both["vhr"]["versus_greedy"]["d_prime"]["value"] == pytest.approx(difference)
    assert "d' minus greedy" in str(found)


def test_what_is_named_twice_counts_once_and_what_nobody_knows_is_no_number():
    once, twice = (study({"greedy": [said]}, ["a"]) for said in ("ab", "abb"))
    assert once.methods["greedy"]["d_prime"].value == twice.methods["greedy"]["d_prime"].value
    nothing_absent = study({"greedy": ["a"]}, ["a"])
    assert nothing_absent.as_json()["methods"]["greedy"]["d_prime"] is None
    json.dumps(nothing_absent.as_json(), allow_nan=False)
    assert "greedy  -   -" in str(nothing_absent)


def test_a_study_tells_whether_random_heads_do_harm():
    truths, fine = ["ab", "bc", "cd", "da"], ["ab", "bc", "cd", "da"]
    harmed = study({"greedy": fine, "random-heads:alpha=2": ["abc", "bcd", "cda", "dab"]}, truths)
    assert "gate, random-heads:alpha=2: CHAIR_S +100.0 [+100.0, +100.0]" in str(harmed)
    assert "these heads do harm" in str(harmed)
    assert "no harm is seen" in str(study({"greedy": fine, "random-heads": fine}, truths))
    assert "gate" not in str(study({"greedy": fine, "vhr": fine}, truths))


def test_points_of_the_curve_are_no_methods_and_do_not_widen_the_vocabulary():
    said = {name: ["abz", "bz"] for name in POINTS}
    found = study({"greedy": ["ab", "b"]}, ["ab", "b"], said)
    assert found.n_objects == 2
    assert list(found.methods) == ["greedy"]
    assert found.curve is not None
    assert list(found.curve.points) == sorted([0.0, *BIASES])
    assert {parse_method(name) for name in POINTS} == {StopBias(b) for b in BIASES}


def test_a_bias_on_naming_is_on_the_first_tokens_of_names(model, inputs):
    made = methods_of("naming", model, ["fork", "traffic light"])
    assert list(made) == list(points_of("naming"))
    method = made["name-bias:bias=8"]
    assert isinstance(method, TokenBias)
    tokens = [model.tokenizer.decode([i]).strip() for i in method.tokens]
    assert all("fork".startswith(t) or "traffic".startswith(t) for t in tokens)
    with TokenBias(method.tokens, 100)(model):
        (first, *_) = model.generate(inputs, max_new_tokens=4, min_new_tokens=4).tokens
    assert set(first.tolist()) <= set(method.tokens)
    with pytest.raises(ValueError, match="tokens of TokenBias are between 0 and"), TokenBias((10**6,))(model):
        pass


def test_the_curve_is_straight_between_points_and_ends_with_them():
    recall, chair_i = np.array([50.0, 90.0, 70.0, 70.0]), np.array([2.0, 20.0, 10.0, 8.0])
    assert chair_i_at(recall, chair_i, 60.0) == pytest.approx(5.0)  # towards the lower of the two at 70
    assert chair_i_at(recall, chair_i, 80.0) == pytest.approx(14.0)
    assert np.isnan(chair_i_at(recall, chair_i, 95.0))
    assert np.isnan(chair_i_at(recall, chair_i, 49.0))


def rows(recalled: int, wrong: int, n: int = 40) -> np.ndarray:
    """Images with ten objects each, of which so many are named, beside so many wrong ones."""
    return np.tile(np.array([wrong > 0, wrong, recalled + wrong, recalled, 10, 20], dtype=float), (n, 1))


def test_heights_above_the_curve_by_hand():
    curve = {-1.0: rows(8, 8), 0.0: rows(6, 4), 1.0: rows(4, 1)}  # recall 80, 60, 40; CHAIR_I 50, 40, 20
    methods = {"on it": rows(6, 4), "better": rows(7, 3), "worse": rows(5, 5), "beyond": rows(9, 1)}
    found = operating_curve("stopping", curve, methods, rates)
    heights = {name: None if a is None else a.height.value for name, a in found.above.items()}
    assert heights["on it"] == pytest.approx(0)
    assert heights["better"] == pytest.approx(45 - 30)
    assert heights["worse"] == pytest.approx(30 - 50)
    assert heights["beyond"] is None
    assert found.above["better"] is not None
    assert found.above["better"].inside == 1
    assert found.as_json()["chair_i_below_curve_at_same_recall"]["beyond"] is None
    assert [p["bias"] for p in found.as_json()["points"]] == [-1, 0, 1]


def test_an_interval_is_of_the_same_images_for_curve_and_method():
    """Images differ wildly, and the method does in each what greedy does: it is never above or below."""
    rng = np.random.default_rng(0)
    greedy = np.concatenate([rows(int(rng.integers(3, 9)), int(rng.integers(0, 9)), 1) for _ in range(60)])
    less, more = greedy - np.array([0, 0, 1, 1, 0, 0]), greedy + np.array([0, 1, 2, 1, 0, 0])
    curve = {-1.0: more, 0.0: greedy, 1.0: less}
    above = operating_curve("stopping", curve, {"same": greedy}, rates).above["same"]
    assert above is not None
    assert (above.height.value, above.height.low, above.height.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_the_curve_is_drawn_from_the_summary(tmp_path, monkeypatch):
    truths = ["abc", "bcd", "cda", "abd"]
    texts = {name: ["abcd"[: 1 + i % 4]] * 4 for i, name in enumerate(POINTS)}
    found = study({"greedy": ["ab", "bd", "cd", "cb"], "vhr": ["abd", "bcd", "cd", "a"]}, truths, texts)
    (tmp_path / "summary.json").write_text(json.dumps(found.as_json()))
    plots.draw_study(tmp_path)
    assert (tmp_path / "operating_curve.png").stat().st_size > 1000
    assert "log-odds of stopping" in str(found)


def test_an_operating_curve_is_of_captions(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--task", "pope", "--operating-curve", "stopping"])
    assert "--operating-curve belongs to --task captions" in capsys.readouterr().err
    assert StudyConfig().operating_curve is None
