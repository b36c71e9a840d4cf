"""The claims: criteria by hand, what is written and gone on with, and the page that shows what was found."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.claims import table, vasparse
from interp.claims.claim import (
    above,
    all_of,
    below,
    by_image,
    lower_at_no_loss,
    mean_over,
    only_if,
    share_of_trials,
    shown,
)
from interp.claims.run import ClaimsConfig, run_claims
from interp.claims.table import CLAIMS, Found, by_model, matrix, read_found, verdicts, write_found
from interp.claims.vhd import RANDOM, against_judges
from interp.cli import main
from interp.evaluate.bootstrap import Interval
from interp.experiments.config import DataConfig, ModelConfig, RunConfig

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "figures" / "claims").glob("*/claims.json"))
NAN = float("nan")


def outcome(judge: Any, **values: tuple[float, float, float]) -> str:
    return judge({name: Interval(*value) for name, value in values.items()}).outcome


def test_a_bound_decides_where_the_whole_interval_is_on_one_side():
    high = above("x", 2)
    assert outcome(high, x=(3, 2.1, 4)) == "holds"
    assert outcome(high, x=(3, 1.9, 4)) == "inconclusive"
    assert outcome(high, x=(1, 0, 2)) == "does not hold"
    assert outcome(high, x=(NAN, NAN, NAN)) == outcome(high, x=(3, NAN, NAN)) == "inconclusive"
    low = below("x", 2)
    assert outcome(low, x=(1, 0, 1.9)) == "holds"
    assert outcome(low, x=(1, 0, 2.1)) == "inconclusive"
    assert outcome(low, x=(3, 2, 4)) == "does not hold"


def test_several_criteria_together():
    both = all_of(above("x", 0), below("y", 0))
    assert outcome(both, x=(1, 0.5, 2), y=(-1, -2, -0.5)) == "holds"
    assert outcome(both, x=(1, 0.5, 2), y=(1, -2, 3)) == "inconclusive"
    assert outcome(both, x=(1, -0.5, 2), y=(1, 0.5, 3)) == "does not hold"
    asked = only_if(above("x", 0), below("y", 0), "no x")
    assert outcome(asked, x=(1, 0.5, 2), y=(1, 0.5, 3)) == "does not hold"
    assert asked({"x": Interval(0, -1, 1), "y": Interval(1, 0.5, 3)}).why.startswith("no x: x ")


def test_fewer_hallucinations_count_only_if_no_less_is_named():
    judge = lower_at_no_loss("chair", "recall")
    assert outcome(judge, chair=(-2, -3, -1), recall=(0, -1, 1)) == "holds"
    assert outcome(judge, chair=(-2, -3, -1), recall=(-2, -3, -1)) == "inconclusive"
    assert outcome(judge, chair=(2, 1, 3), recall=(0, -1, 1)) == "does not hold"
    assert outcome(judge, chair=(0, -1, 1), recall=(0, -1, 1)) == "inconclusive"


def test_random_heads_must_all_be_beaten():
    better, worse = Interval(-2, -3, -1), Interval(2, 1, 3)
    same = Interval(0, -1, 1)
    found = {
        f"{rate} minus {name}": value for name in RANDOM for rate, value in (("CHAIR_I", better), ("recall", same))
    }
    judge = against_judges(RANDOM)
    assert judge(found).outcome == "holds"
    assert judge(found | {f"CHAIR_I minus {RANDOM[2]}": worse}).outcome == "does not hold"


def test_intervals_by_hand():
    value = mean_over([1.0, 3.0, NAN])
    assert value.value == 2
    assert (value.low, value.high) == (1, 3)
    assert math.isnan(mean_over([NAN]).value)
    assert by_image(1, lambda rows: 5.0).value == 5
    assert math.isnan(by_image(1, lambda rows: 5.0).low)
    assert math.isnan(by_image(4, lambda rows: None).value)
    all_true = share_of_trials(100, 100)
    assert (all_true.value, all_true.high) == (100, 100)
    assert all_true.low == pytest.approx(100 * 0.025**0.01)
    assert share_of_trials(0, 10).high == pytest.approx(30.8, abs=0.1)
    wilson = share_of_trials(50, 100)
    assert (wilson.low, wilson.high) == pytest.approx((40.4, 59.6), abs=0.1)
    assert shown(Interval(0.5, 0.25, 1)) == "0.50 [0.25, 1.00]"


def test_every_claim_is_whole_and_names_are_its_own():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names) >= 20
    for claim in CLAIMS:
        assert "arXiv" in claim.citation
        assert all((claim.where, claim.says, claim.measures, claim.criterion)), claim.name


def test_theorem_1_by_brute_force_fails_for_a_wrong_selection(monkeypatch):
    assert vasparse.by_brute_force(0).value == 100

    def smallest(delta: torch.Tensor, scope: torch.Tensor, keep: float) -> torch.Tensor:
        return delta.argsort().argsort() < round(keep * len(delta))

    monkeypatch.setattr(vasparse, "top_mask", smallest)
    assert vasparse.by_brute_force(0).value < 90


def test_what_is_written_is_read_again(tmp_path):
    claim = CLAIMS[0]
    found = {claim.name: Found({"x (%)": Interval(1.0, NAN, NAN)}, above("x (%)", 0)({"x (%)": Interval(1, NAN, NAN)}))}
    settings = {"model": "m", "command": "interp claims", "n_images": 2, "data": "d", "n_texts": 3}
    write_found(tmp_path, found, settings)
    again = read_found(tmp_path / "claims.json")[claim.name]
    assert math.isnan(again.measured["x (%)"].low)
    assert again.verdict == found[claim.name].verdict
    assert "1, no interval" in (tmp_path / "claims.md").read_text()
    assert f"| {claim.says} ({claim.name}) | inconclusive<br>1, no interval |" in matrix(by_model([tmp_path]))
    (tmp_path / "claims.json").write_text("{")
    with pytest.raises(ValueError, match="no result of interp claims"):
        read_found(tmp_path / "claims.json")
    with pytest.raises(ValueError, match=r"holds no claims\.json"):
        by_model([tmp_path / "nowhere"])


def test_claims_run_and_go_on(tmp_path, capsys):
    only = (
        "vhd-in-few-heads,t-vhd-word,theorem-1,proposition-1,sinks-exist,penalty-lowers-sinks,contrast-sees-the-picture"
    )
    shared: Any = {"data": DataConfig(limit=3), "max_new_tokens": 24, "texts": 2}
    run = RunConfig(batch_size=3, out=str(tmp_path / "claims"))
    few = ["--limit", "3", "--max-new-tokens", "24", "--texts", "2", "--batch-size", "3"]
    main(["claims", "--only", "theorem-1", *few, "--out", str(tmp_path / "claims")])
    assert "theorem-1" not in capsys.readouterr().out.partition("holds: 1")[2]
    report = run_claims(ClaimsConfig(ModelConfig(), run=run, only=only, **shared))
    assert set(report.found) == set(only.split(","))
    rows = {row["name"]: row for row in json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"]}
    (cosines,) = rows["proposition-1"]["measured"].values()
    assert cosines[0] == 100
    assert rows["theorem-1"]["measured"] == {"cases in which the top S is the minimum (%)": [100.0, 98.777903, 100.0]}
    still = rows["contrast-sees-the-picture"]["measured"]["total variation between two pictures, last (%)"]
    assert still == [0.0, 0.0, 0.0], "the last embedding does not depend on the picture"
    maps = [
        json.loads(line)["vhd"] for line in (tmp_path / "claims" / "captions-greedy.jsonl").read_text().splitlines()
    ]
    share = [np.sort(np.ravel(m))[-7:].sum() / np.sum(m) for m in maps]
    (value,) = rows["vhd-in-few-heads"]["measured"].values()
    assert value[0] == pytest.approx(100 * np.mean(share), abs=1e-3)
    assert "Keeping the S largest delta" in str(report)
    main(["claims", "--matrix", str(tmp_path / "claims"), "--out", str(tmp_path / "a" / "new")])
    assert "(theorem-1) | holds" in capsys.readouterr().out
    assert (tmp_path / "a" / "new" / "matrix.png").exists()
    (one,) = verdicts(by_model([tmp_path / "claims"]))[
        "Keeping the S largest delta minimises the objective of the selection."
    ].values()
    assert one == ("holds", "100.0 [98.8, 100.0]")
    with pytest.raises(ValueError, match="only names claims among"):
        ClaimsConfig(only="no-such-claim")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_committed_verdicts_are_what_the_criteria_say_of_the_committed_numbers(folder):
    by_name = {claim.name: claim for claim in CLAIMS}
    for name, found in read_found(folder / "claims.json").items():
        if found.verdict.outcome != "not measured":
            assert by_name[name].judge(found.measured).outcome == found.verdict.outcome, name


def test_the_page_shows_the_matrix():
    settings = {f: json.loads((f / table.FILE).read_text())["settings"] for f in FOLDERS}
    page = (ROOT / "docs" / "pages" / "claims.md").read_text(encoding="utf-8")
    ordered = sorted(FOLDERS, key=lambda f: page.find(f"figures/claims/{f.name}"))
    assert matrix(by_model(ordered)) in page
    for told in settings.values():
        assert told["command"] in page
