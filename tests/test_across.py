"""Methods by models from folders of studies: what stands in a cell, in a head, and what is refused."""

import json
from pathlib import Path

import pytest

from interp import cli, plots
from interp.experiments.across import MEASURES, Across


def difference(value: float, width: float) -> dict[str, dict[str, float]]:
    return {m: {"value": value, "low": value - width, "high": value + width} for m in MEASURES}


def study(folder: Path, model: str, differences: dict[str, tuple[float, float]]) -> Path:
    folder.mkdir()
    greedy = dict(zip(MEASURES, (40.0, 10.0, 90.0, 3.5), strict=True))
    methods: dict[str, dict] = {"greedy": greedy}
    methods |= {name: greedy | {"versus_greedy": difference(*d)} for name, d in differences.items()}
    (folder / "summary.json").write_text(json.dumps({"methods": methods, "n_images": 60}))
    (folder / "manifest.json").write_text(json.dumps({"experiment": "study", "model": model}))
    return folder


def cause(folder: Path, model: str, n: int = 46) -> Path:
    folder.mkdir()
    shares = {"picture": 28.3, "text": 13.0, "both": 58.7, "either": 0.0, "neither": 0.0}
    follows = {"shares": {name: {"value": v} for name, v in shares.items()} if n else {}, "n": n}
    (folder / "cause.json").write_text(json.dumps({"follows": {"hallucinated": follows}}))
    (folder / "manifest.json").write_text(json.dumps({"experiment": "cause", "model": model}))
    return folder


def test_cells_are_differences_and_heads_say_what_hallucinations_follow(tmp_path, capsys):
    studies = [study(tmp_path / "a", "one", {"vhr": (28.0, 5.0), "beams": (-3.0, 5.0)})]
    studies.append(study(tmp_path / "b", "two", {"vhr": (-20.0, 5.0)}))
    folders = [str(folder) for folder in studies]
    cli.main(["across", *folders, "--causes", str(cause(tmp_path / "c", "one")), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("<br>follow both 59 %, picture 28 %, text 13 % of 46 words; 60 images") == 1
    assert lines[0].endswith("two<br>cause not measured; 60 images |")
    assert lines[3] == "| `vhr` | **+28.0 [+23.0, +33.0]** | **-20.0 [-25.0, -15.0]** |"
    assert lines[4] == "| `beams` | -3.0 [-8.0, +2.0] |  |", "not run on the second model, and not clear on the first"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"across.json", "across.md", "across.png"}
    assert plots.redraw(tmp_path / "out") == [tmp_path / "out" / "across.png"]


def test_what_does_not_fit_is_named(tmp_path):
    one = study(tmp_path / "a", "one", {})
    for folders, causes, said in (
        ([one, study(tmp_path / "b", "one", {})], [], "a second study of one"),
        ([one], [cause(tmp_path / "c", "two")], "no study of two"),
        ([tmp_path / "c"], [], "holds a run of cause, expected one of interp study"),
    ):
        with pytest.raises(ValueError, match=said):
            Across.read(folders, causes)
    (one / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"summary\.json is missing"):
        Across.read([one])
    none = Across.read([study(tmp_path / "d", "three", {})], [cause(tmp_path / "e", "three", n=0)])
    assert "no hallucinated word was asked" in str(none)
