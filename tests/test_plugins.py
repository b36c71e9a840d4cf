"""What users bring: methods, scores, directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.attribution.directions import between, mean_stream, of_pictures, of_words
from interp.experiments.own_score import score_run
from interp.experiments.records import CaptionRecord, RecordFile
from interp.interventions.directions import Direction
from interp.models import image_free, read
from interp.plugins import METHODS, brought, is_path, split_path

MODULE = """
def length(text, truth):
    return len(text.split())


def broken(text, truth):
    return float("nan")
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_scores"


def caption(image_id: int, method: str, text: str) -> CaptionRecord:
    return CaptionRecord(image_id, method, text, (), ("fork",), len(text.split()), 0.1, 1, [1, 2])


def test_names_of_what_is_brought():
    assert is_path("package.module:Name")
    assert not is_path("vhr:alpha=2")
    assert not is_path("vhr")
    assert split_path("mine.methods:Mine:alpha=2:seed=1") == ("mine.methods:Mine", "alpha=2:seed=1")
    assert split_path("vhr:alpha=2") == ("vhr", "alpha=2")
    assert split_path("greedy") == ("greedy", "")
    assert brought(METHODS, "nothing") is None
    with pytest.raises(ValueError, match=r"cannot bring nowhere:Mine: .*expected package.module:Name"):
        brought(METHODS, "nowhere:Mine")
    with pytest.raises(ValueError, match="cannot bring json:Mine"):
        brought(METHODS, "json:Mine")
    assert brought(METHODS, "json:dumps") is json.dumps


def test_an_own_score_of_captions(module, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    texts = {"greedy": ["a fork", "a cat here", "x"], "vhr": ["a fork too", "a cat", "x y"]}
    rows = [caption(i, method, text) for method, listed in texts.items() for i, text in enumerate(listed)]
    RecordFile(run / "captions.jsonl", CaptionRecord).append([*rows, caption(9, "greedy", "only here")])
    found = score_run(run, f"{module}:length")
    assert found.n_images == 3, "those that every method has"
    assert found.means["greedy"].value == pytest.approx(2.0)
    assert found.versus_first["vhr"].value == pytest.approx(1 / 3)
    assert found.versus_first["vhr"].low <= 1 / 3 <= found.versus_first["vhr"].high
    for name, message in (
        (f"{module}:broken", "gives nan for image 0 of greedy"),
        ("nonsense", "a score is package.module:function"),
        (f"{module}:nothing", "cannot bring"),
    ):
        with pytest.raises(ValueError, match=message):
            score_run(run, name)


def test_directions_are_differences_of_means(model, pictures, tmp_path):
    inputs = model.inputs(pictures, ["Is there a fork in the image?"] * 3 + ["Describe this image."])
    stream = read(model, inputs, "resid_post")["resid_post"][:, 3]
    last = stream[torch.arange(4), inputs.last]
    torch.testing.assert_close(mean_stream(model, inputs, 3), last.mean(0))
    chosen = mean_stream(model, inputs, 3, [[-1], [], [-1, -2], []])
    torch.testing.assert_close(chosen, torch.stack([stream[0, -1], stream[2, -1], stream[2, -2]]).mean(0))
    found = of_pictures(model, inputs, 3)
    torch.testing.assert_close(found.vector, last.mean(0) - mean_stream(model, image_free(model, inputs), 3))
    back = between(model, image_free(model, inputs), inputs, 3)
    torch.testing.assert_close(back.vector, -found.vector)
    captions = [model.encode("A fork and a knife.")] * 4
    words = of_words(model, inputs, captions, [[1], [], [1], [1]], [[4], [4], [], []], 5)
    whole = read(model, inputs.extended(captions), "resid_post")["resid_post"][:, 5]
    start = inputs.input_ids.shape[1] - 1
    by_hand = whole[[0, 2, 3], start + 1].mean(0) - whole[[0, 1], start + 4].mean(0)
    torch.testing.assert_close(words.vector, by_hand)
    with pytest.raises(ValueError, match="at least one position"):
        of_words(model, inputs, captions, [[]] * 4, [[4]] * 4, 5)
    with pytest.raises(ValueError, match="layers 0 to 7, got 8"):
        of_pictures(model, inputs, 8)
    found.write(tmp_path / "v.npz")
    again = Direction.read(tmp_path / "v.npz")
    assert (again.layer, again.digest) == (3, found.digest)
    random = found.random(1)
    assert float(random.vector.norm()) == pytest.approx(float(found.vector.norm()), rel=1e-5)
    assert not torch.equal(random.vector, found.random(2).vector)
    np.savez(tmp_path / "w.npz", vector=np.ones(3))
    for path in (tmp_path / "w.npz", Path(tmp_path / "nowhere.npz")):
        with pytest.raises(ValueError, match="holds no direction"):
            Direction.read(path)
