"""POPE end to end, on the testbed's questions and on a file's; and runs as tables."""

import json
from typing import Any

import pandas as pd
import pytest

import interp
from interp import cli
from interp.evaluate import pope
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.pope import PopeConfig, run_pope
from interp.testbed.export import export

FEW: dict[str, Any] = {"limit": 4, "batch_size": 5, "methods": "greedy,m3id"}


def lines(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_scored_and_a_cut_run_goes_on(tmp_path):
    summary = run_pope(PopeConfig(**FEW, out=str(tmp_path / "run")))
    assert summary is not None
    rows = lines(tmp_path / "run" / "answers.jsonl")
    greedy = [r for r in rows if r["method"] == "greedy"]
    assert summary.methods["greedy"] == pope([r["answer"] for r in greedy], [r["label"] for r in greedy])
    assert summary.methods["greedy"].n == len(greedy) > 12
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["m3id"]["mcnemar"]["p"] <= 1
    text = (tmp_path / "run" / "answers.jsonl").read_text()
    (tmp_path / "run" / "answers.jsonl").write_text(text[: len(text) // 2])
    run_pope(PopeConfig(**FEW, out=str(tmp_path / "run")))
    assert lines(tmp_path / "run" / "answers.jsonl") == rows


def test_answers_from_logits_agree_with_those_from_texts(tmp_path):
    by_text = run_pope(PopeConfig(**FEW, out=str(tmp_path / "text")))
    by_logits = run_pope(PopeConfig(**FEW, from_logits=True, out=str(tmp_path / "logits")))
    assert by_text is not None
    assert by_logits is not None
    for name in ("greedy", "m3id"):
        assert by_text.methods[name].accuracy == by_logits.methods[name].accuracy
    for row in lines(tmp_path / "logits" / "answers.jsonl"):
        assert (row["yes"] > 0.5) == row["answer"].startswith("Yes")


def test_questions_of_a_file(tmp_path, capsys):
    """All are answered; with an image that cannot be read, the others are, as before."""
    export(tmp_path / "coco", "broken", "test", 3)
    asked = ["--questions", str(tmp_path / "coco" / "pope_adversarial.json")]
    asked += ["--images", str(tmp_path / "coco" / "test"), "--methods", "greedy"]
    cli.main(["study", "--task", "pope", *asked, "--out", str(tmp_path / "file")])
    assert "POPE, " in capsys.readouterr().out
    rows = lines(tmp_path / "file" / "answers.jsonl")
    assert len(rows) == len(lines(tmp_path / "coco" / "pope_adversarial.json"))
    (tmp_path / "coco" / "test" / "test_000001.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", "--task", "pope", *asked, "--out", str(tmp_path / "torn")])
    assert stopped.value.code == 1
    known = {r["question_id"]: r["answer"] for r in rows}
    torn = lines(tmp_path / "torn" / "answers.jsonl")
    assert 0 < len(torn) < len(rows)
    assert all(known[r["question_id"]] == r["answer"] for r in torn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pope", "--questions", "q.json"], "expected both --questions and --images"),
        (["--task", "pope", "--data", "coco:/data"], "has no questions of its own"),
        (["--from-logits"], "belong to --task pope"),
    ],
)
def test_wrong_settings_are_told_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_as_tables(tmp_path):
    run_study(StudyConfig(limit=3, max_new_tokens=40, methods="greedy,beams:num_beams=2", out=str(tmp_path / "run")))
    tables = interp.read_run(tmp_path / "run")
    assert len(tables.captions) == 6
    assert set(tables.captions["method"]) == {"greedy", "beams:num_beams=2"}
    assert list(tables.methods.index) == ["greedy", "beams:num_beams=2"]
    low, value, high = (tables.methods.loc["greedy", f"recall{end}"] for end in ("_low", "", "_high"))
    assert low <= value <= high
    named = tables.captions.set_index(["image_id", "method"])["mentions"].map(len).sum()
    assert len(tables.words) == named
    assert isinstance(tables.words, pd.DataFrame)
    whole = (tmp_path / "run" / "captions.jsonl").read_text()
    (tmp_path / "run" / "captions.jsonl").write_text(whole + '{"image_id": ')
    assert len(interp.read_run(tmp_path / "run").captions) == 6, "a line that is being written is left alone"
    assert (tmp_path / "run" / "captions.jsonl").read_text().endswith('{"image_id": ')
    with pytest.raises(ValueError, match="holds no run"):
        interp.read_run(tmp_path)
