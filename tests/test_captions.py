import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configured import configured
from PIL import Image

from interp.cli import main
from interp.data import open_data
from interp.evaluate import ObjectParser
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.records import WordRecord
from interp.experiments.words import t_vhd_summary
from interp.interventions import VHR, Greedy, parse_method
from interp.metrics.vhd import token_divergence
from interp.testbed.export import export
from interp.trace.divergence import token_vhd, vhd

SMALL: dict[str, Any] = {
    "limit": 6,
    "batch_size": 3,
    "max_new_tokens": 40,
    "methods": "greedy,vhr:alpha=1.5,bottom-heads",
}
FILES = {
    "manifest.json",
    "captions.jsonl",
    "tokens.jsonl",
    "summary.json",
    "vhd.npy",
    "vhd.png",
    "vhd.npz",
    "t_vhd.png",
    "t_vhd.npz",
    "chair_recall.png",
    "chair_speed.png",
    "heads-vhr-alpha=1.5.png",
    "heads-bottom-heads.png",
}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    run_study(configured(StudyConfig, **SMALL, out=str(out)))
    return out


def test_a_study_writes_what_it_promises(run):
    assert {p.name for p in run.iterdir()} == FILES
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"versions", "seed", "prompt", "max_new_tokens", "attention", "image_ids"} <= set(manifest)
    assert len(manifest["image_ids"]) == 6
    assert manifest["image_ids"] == sorted(manifest["image_ids"])
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["methods"]) == ["greedy", "vhr:alpha=1.5", "bottom-heads"]
    for values in summary["methods"].values():
        assert {"chair_s", "chair_i", "recall", "length", "tokens_per_s"} <= set(values)
    wanted = {
        "auroc",
        "auroc_position_controlled",
        "auroc_position",
        "auroc_probability",
        "k",
        "n_hallucinated",
        "n_correct",
    }
    assert wanted <= set(summary["t_vhd"])
    assert len(lines(run / "captions.jsonl")) == 18
    for picture in run.glob("*.png"):
        with Image.open(picture) as image:
            assert image.size[0] > 300


def test_records_hold_what_the_model_did(run, model):
    """A record's words, T-VHD and map are those of the same image and caption looked at alone."""
    data = open_data("testbed:broken", None, ObjectParser.coco())
    rows = [r for r in lines(run / "captions.jsonl") if r["method"] == "greedy"]
    row = rows[2]
    inputs = model.inputs([data.load(row["image_id"]).image], "Please describe this image in detail.")
    generation = model.generate(inputs, max_new_tokens=40)
    assert generation.texts[0] == row["caption"]
    trace = token_vhd(model, inputs, generation.tokens)[0]
    np.testing.assert_allclose(token_divergence(trace.vhd, 1).numpy(), row["t_vhd"], rtol=1e-3)
    np.testing.assert_allclose(vhd(model, inputs)[0].numpy(), row["vhd"], rtol=1e-3, atol=1e-3)
    for mention in row["mentions"]:
        assert row["caption"][mention["start"] : mention["end"]] == mention["text"]
        span = generation.tokens[0][mention["token"] : mention["token"] + mention["n_tokens"]]
        assert mention["text"] in model.tokenizer.decode(span)
        assert mention["hallucinated"] is (mention["object"] not in row["truth"])


def test_word_records_are_the_mentions_and_greedy_ones_have_their_t_vhd(run):
    words = lines(run / "tokens.jsonl")
    rows = lines(run / "captions.jsonl")
    assert len(words) == sum(len(r["mentions"]) for r in rows) > 0
    by_id = {r["image_id"]: r for r in rows if r["method"] == "greedy"}
    for word in words:
        if word["method"] != "greedy":
            assert "t_vhd" not in word
            continue
        row = by_id[word["image_id"]]
        assert word["t_vhd"] == row["t_vhd"][word["token"]]
        start, stop = row["sentences"][word["sentence"]]
        assert start <= word["token"] < stop


def test_a_cut_run_resumes_to_the_same_result(run, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "manifest.json").write_text((run / "manifest.json").read_text())
    whole = (run / "captions.jsonl").read_bytes()
    (out / "captions.jsonl").write_bytes(whole[: len(whole) * 2 // 5])  # in the middle of a line
    run_study(configured(StudyConfig, **SMALL, out=str(out)))
    assert timeless(lines(out / "captions.jsonl")) == timeless(lines(run / "captions.jsonl"))
    assert (out / "tokens.jsonl").read_text() == (run / "tokens.jsonl").read_text()


def test_a_killed_process_loses_nothing(run, tmp_path):
    """Killed hard while it writes, and started again: the same captions as in one go."""
    arguments = [sys.executable, "-m", "interp", "study", "--methods", SMALL["methods"], "--limit", "6"]
    arguments += ["--batch-size", "3", "--max-new-tokens", "40", "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    records = tmp_path / "killed" / "captions.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended by itself"
    written = len(records.read_bytes().splitlines())
    assert 0 < written < 18, f"not killed in the middle: {written} of 18 records were there"
    run_study(configured(StudyConfig, **SMALL, out=str(tmp_path / "killed")))
    assert timeless(lines(records)) == timeless(lines(run / "captions.jsonl"))


def test_the_limit_draws_a_seeded_sample_of_sorted_ids():
    data = open_data("testbed:biased", "dev", ObjectParser.coco())
    few = data.limited(10, seed=1)
    assert few.image_ids == data.limited(10, seed=1).image_ids == tuple(sorted(few.image_ids))
    assert few.image_ids != data.limited(10, seed=2).image_ids
    assert data.selected(10, 1).image_ids == few.image_ids
    assert data.limited(None, 0) is data
    assert data.load(3).truth


def test_a_coco_folder_gives_the_captions_of_the_same_scenes(run, tmp_path):
    export(tmp_path / "coco", "broken", "test", 500)
    settings: dict[str, Any] = SMALL | {"methods": "greedy"}
    run_study(configured(StudyConfig, **settings, data=f"coco:{tmp_path / 'coco'}", out=str(tmp_path / "run")))
    ours = [(r["image_id"], r["caption"], r["truth"]) for r in lines(tmp_path / "run" / "captions.jsonl")]
    rows = lines(run / "captions.jsonl")
    assert ours == [(r["image_id"], r["caption"], r["truth"]) for r in rows if r["method"] == "greedy"]


def test_methods_are_read_with_their_parameters():
    assert parse_method("greedy") == Greedy()
    assert parse_method("vhr:alpha=1.5:layers=1+2") == VHR(alpha=1.5, layers=(1, 2))
    assert parse_method("random-heads:seed=3") == VHR(choice="random", seed=3)
    assert parse_method("vhr:reinforce_image_free=false") == VHR(reinforce_image_free=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vhrr", "unknown method 'vhrr'; expected one of greedy, beams"),
        ("random-heads:choice=bottom", "has no setting 'choice=bottom'"),
        ("vhr:beta=1", "has no setting 'beta=1'"),
        ("vhr:alpha", "has no setting 'alpha'"),
        ("vhr:alpha=big", "alpha of VHR is a number above 0 and at most 1000, got 'big'"),
        ("vhr:layers=a", "numbers joined by \\+"),
        ("vhr:alpha=-1", "alpha of VHR is a number above 0"),
    ],
)
def test_wrong_methods_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def word(image: int, hallucinated: bool, token: int, t_vhd: float) -> WordRecord:
    named: Any = {"object": "fork", "text": "fork", "start": 0, "end": 4, "n_tokens": 1, "mention": 0, "sentence": 0}
    given: Any = {"hallucinated": hallucinated, "token": token, "t_vhd": t_vhd, "probability": 0.5}
    return WordRecord(image_id=image, method="greedy", **named, **given)


def test_t_vhd_summary_by_hand():
    words = [word(i, hallucinated=i % 2 == 0, token=5, t_vhd=float(i % 2)) for i in range(20)]
    result = t_vhd_summary(words, [], top_k=1, seed=0, resamples=20)
    assert (result.auroc, result.auroc_position_controlled) == (1, 1)
    assert (result.auroc_position, result.auroc_probability) == (0.5, 0.5)
    assert (result.n_hallucinated, result.n_correct) == (10, 10)
    assert result.interval["auroc"] == (1, 1)
    nothing = t_vhd_summary([], [], top_k=1, seed=0)
    assert nothing.auroc is None


def test_a_score_that_only_knows_the_position_tells_nothing_at_the_same_position():
    """T-VHD falls with the position, hallucinations come late: a good AUROC that the control takes away."""
    rng = np.random.default_rng(0)
    words = []
    for image in range(400):
        token = int(rng.integers(0, 100))
        wrong = bool(rng.random() < token / 100)
        words.append(word(image, wrong, token, -float(token // 10) + 0.01 * rng.random()))
    result = t_vhd_summary(words, [], top_k=1, resamples=20)
    assert result.auroc is not None
    assert result.auroc > 0.75
    assert result.auroc_position_controlled == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nonesuch"], "cannot load the model 'nonesuch'"),
        (["--methods", "greedy,magic"], "unknown method 'magic'"),
        (["--methods", "vhr,vhr"], "each method can be named once"),
        (["--data", "testbed:kitchen"], "unknown data 'testbed:kitchen'"),
        (["--data", "coco:/nowhere"], "expected /nowhere/annotations/instances_SPLIT.json"),
        (["--split", "val"], "the testbed's splits are train, dev, test"),
        (["--limit", "-3"], "limit is a number of at least 1, got -3"),
        (["--device", "abacus"], "cannot use the device 'abacus'"),
        (["--methods", "vhr:layers=99"], "layers are between 0 and 7 in this model, got 99"),
        (["--top-k", "9"], "top_k is at most the 8 heads"),
        (["--dtype", "int4"], "dtype is float32, bfloat16, float16 or auto"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["study", *arguments, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists(), "a mistake claims no folder"


def test_a_foreign_folder_is_one_line(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["study", "--limit", "5", "--out", str(run)])
    assert stopped.value.code == 2
    assert "holds a run with other settings" in capsys.readouterr().err.strip().splitlines()[-1]


def test_testbed_commands(tmp_path, capsys):
    main(["testbed", "show", "--out", str(tmp_path / "sheet.png"), "--columns", "2"])
    main(["testbed", "export", "--out", str(tmp_path / "coco"), "--limit", "2"])
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "coco" / "annotations" / "captions_test.json").exists()
    assert "2 scenes in COCO format" in capsys.readouterr().out
