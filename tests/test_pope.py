"""POPE end to end, on the testbed's questions and on a file's; and runs as tables."""

import json
from typing import Any

import pandas as pd
import pytest
from configured import configured

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
    summary = run_pope(configured(PopeConfig, **FEW, out=str(tmp_path / "run")))
    assert summary is not None
    rows = lines(tmp_path / "run" / "answers.jsonl")
    greedy = [r for r in rows if r["method"] == "greedy"]
    assert summary.methods["greedy"] == pope([r["answer"] for r in greedy], [r["label"] for r in greedy])
    assert summary.methods["greedy"].n == len(greedy) > 12
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["m3id"]["mcnemar"]["p"] <= 1
    text = (tmp_path / "run" / "answers.jsonl").read_text()
    (tmp_path / "run" / "answers.jsonl").write_text(text[: len(text) // 2])
    run_pope(configured(PopeConfig, **FEW, out=str(tmp_path / "run")))
    assert lines(tmp_path / "run" / "answers.jsonl") == rows


def test_answers_from_logits_agree_with_those_from_texts(tmp_path):
    by_text = run_pope(configured(PopeConfig, **FEW, out=str(tmp_path / "text")))
    by_logits = run_pope(configured(PopeConfig, **FEW, from_logits=True, out=str(tmp_path / "logits")))
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


def test_ids_choose_the_images_that_are_asked_about(tmp_path):
    """Of the testbed's by number, of a question file's by file name or by the number in it."""
    (tmp_path / "ids.txt").write_text("7\n3\n")
    few: Any = {"methods": "greedy", "ids": str(tmp_path / "ids.txt")}
    run_pope(configured(PopeConfig, **few, out=str(tmp_path / "scenes")))
    assert {r["image"] for r in lines(tmp_path / "scenes" / "answers.jsonl")} == {"3", "7"}
    export(tmp_path / "coco", "broken", "test", 8)
    asked: Any = {"questions": str(tmp_path / "coco" / "pope_adversarial.json"), "images": str(tmp_path / "coco/test")}
    run_pope(configured(PopeConfig, **few, **asked, out=str(tmp_path / "file")))
    answers = lines(tmp_path / "file" / "answers.jsonl")
    assert {r["image"] for r in answers} == {"test_000003.png", "test_000007.png"}
    again = few | {"ids": str(tmp_path / "file" / "manifest.json")}
    run_pope(configured(PopeConfig, **again, **asked, out=str(tmp_path / "again")))
    assert lines(tmp_path / "again" / "answers.jsonl") == answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pope", "--questions", "q.json"], "expected both --questions and --images"),
        (["--task", "pope", "--data", "coco:/data"], "has no questions of its own"),
        (["--from-logits"], "belong to --task pope"),
        (["--task", "pope", "--top-k", "2"], "belong to --task captions"),
        (["--task", "pope", "--prompt", "What?"], "belongs to --task captions"),
        (["--task", "pope", "--questions", "q", "--images", "d", "--split", "dev"], "leave out --data and --split"),
    ],
)
def test_wrong_settings_are_told_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_as_tables(tmp_path):
    run_study(
        configured(
            StudyConfig, limit=3, max_new_tokens=40, methods="greedy,beams:num_beams=2", out=str(tmp_path / "run")
        )
    )
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
    summary = (tmp_path / "run" / "summary.json").read_text()
    (tmp_path / "run" / "summary.json").write_text(summary[: len(summary) // 2])
    with pytest.raises(ValueError, match=r"summary.json is no summary of interp study, or only half of one; remove"):
        interp.read_run(tmp_path / "run")


def test_a_pope_run_is_no_study(tmp_path):
    run_pope(configured(PopeConfig, limit=1, methods="greedy", out=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"holds a run of another kind \(pope\)"):
        interp.read_run(tmp_path / "run")
