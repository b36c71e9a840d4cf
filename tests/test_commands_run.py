"""Commands that no other test runs, run small: `tests/test_docs.py` asks that all that are shown are run."""

import json

import pytest

from interp.cli import lab, main
from interp.cli.lab import shipped_notebooks


def test_cause_prints_what_words_follow(tmp_path, capsys):
    few = ["--limit", "2", "--max-new-tokens", "24", "--data", "testbed:broken"]
    main(["cause", *few, "--out", str(tmp_path / "cause")])
    assert "% of object words that follow" in capsys.readouterr().out
    assert (tmp_path / "cause" / "swaps.png").is_file()


def test_opope_prints_scores(tmp_path, capsys):
    told, asked = tmp_path / "captions.jsonl", tmp_path / "questions.jsonl"
    told.write_text(json.dumps({"image_id": 1, "caption": "A cat sits on a chair."}) + "\n")
    rows = [
        {
            "question_id": i,
            "image": "COCO_val2014_000000000001.jpg",
            "text": f"Is there a {what} in the image?",
            "label": s,
        }
        for i, (what, s) in enumerate([("cat", "yes"), ("dog", "no"), ("bird", "yes")])
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["opope", str(told), "--questions", str(asked), "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(200 / 3)


def test_report_of_a_study(tmp_path, capsys):
    """From a study to its page: the study names the command, and the command looks into the study's own tokens."""
    out = str(tmp_path / "run")
    main(["study", "--limit", "2", "--batch-size", "2", "--max-new-tokens", "12", "--methods", "greedy", "--out", out])
    assert f"the captions, to look through: interp report {out}" in capsys.readouterr().out
    main(["report", out, "--look", "1", "--top", "2"])
    assert "heads were looked into for 1 of 2 images" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    rows = [json.loads(line) for line in (tmp_path / "run" / "captions.jsonl").read_text().splitlines()]
    looked = [c for image in data["images"] for c in image["captions"] if "look" in c]
    assert len(looked) == 1
    for caption in looked:
        row = next(r for r in rows if r["caption"] == caption["text"])
        assert len(caption["look"]["vhd"]) == 2 * row["n_tokens"]
        words = [caption["text"][a:b] for a, b, _ in caption["parts"]]
        assert "".join(words) == caption["text"]
        if "t_vhd" in row:
            assert caption["t"] == row["t_vhd"]
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nothing")])
    assert "holds no run" in capsys.readouterr().err


def test_a_report_without_the_data_says_so(tmp_path, capsys):
    """COCO's pictures are gone: the page comes without them, and without a look."""
    run = tmp_path / "run"
    run.mkdir()
    manifest = {"experiment": "study", "model": "m", "data": "coco:/nowhere", "split": None, "prompt": "p", "top_k": 1}
    (run / "manifest.json").write_text(json.dumps(manifest))
    row = {"image_id": 1, "method": "greedy", "caption": "A cat.", "mentions": [], "truth": ["cat"], "n_tokens": 1}
    (run / "captions.jsonl").write_text(json.dumps({**row, "seconds": 0.1, "kv_bytes": 1, "tokens": [5]}) + "\n")
    main(["report", str(run)])
    assert "the pictures are left out" in capsys.readouterr().out
    assert "A cat." in (run / "report.html").read_text(encoding="utf-8")


def test_lab_copies_the_notebooks_and_keeps_what_was_changed(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mine"
    main(["lab", str(folder), "--copy-only"])
    names = [path.name for path in shipped_notebooks()]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert names[0] == "01_explore_heads.ipynb"
    (folder / names[0]).write_text("changed")
    started = []
    monkeypatch.setattr(
        lab.subprocess, "run", lambda words, check: started.append(words) or type("Done", (), {"returncode": 0})
    )
    main(["lab", str(folder), "--no-browser"])
    assert "left as it is" in capsys.readouterr().out
    assert (folder / names[0]).read_text() == "changed"
    assert started[0][1:] == ["-m", "jupyterlab", "--no-browser", str(folder)]


def test_lab_says_where_notebooks_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "a" / "b" / "lab.py"))
    monkeypatch.setattr(lab, "files", lambda name: [])
    with pytest.raises(ValueError, match="did not come with this installation"):
        shipped_notebooks()
    installed = tmp_path / "share" / "interp" / "01_x.ipynb"
    installed.parent.mkdir(parents=True)
    installed.write_text("{}")
    found = type("Path", (), {"suffix": ".ipynb", "locate": lambda self: installed})
    monkeypatch.setattr(lab, "files", lambda name: [found()])
    assert shipped_notebooks() == [installed]
