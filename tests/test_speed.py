"""Every fast path against its slow reference, and the tools that measure them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import build

from interp import cli
from interp.attribution.effects import exact_contributions
from interp.bench import command, scale
from interp.bench.clock import Spread, Timing, alternating
from interp.bench.rows import Line
from interp.bench.sizes import SIZES, inputs_of
from interp.experiments.claims import Batch, Claims, own_and_others
from interp.interventions import H2O, SnapKV, StreamingLLM, parse_method, scaled_heads
from interp.interventions.primitives.hidden_keys import HidesKeys
from interp.interventions.primitives.side_by_side import SideBySide
from interp.models import load, read
from interp.models.compat import traceable, untraced

FORCED: Any = {"max_new_tokens": 14, "min_new_tokens": 14}


def tokens(model: Any, inputs: Any, method: str, **options: Any) -> tuple[list[list[int]], int]:
    with parse_method(method)(model):
        found = model.generate(inputs, **{**FORCED, **options})
    return [t.tolist() for t in found.tokens], found.cache_bytes


@pytest.mark.parametrize(
    "method", ["vcd:alpha=2", "m3id:gamma=0.2", "pai:alpha=2:gamma=2", "icd:alpha=3", "vcd:temperature=1"]
)
def test_two_streams_in_one_batch_write_what_two_passes_write(method, model, inputs, monkeypatch):
    """Padded rows; draws by their seed; and the cache counts generate's own rows only."""
    rode: list[bool] = []
    original = SideBySide._fits
    monkeypatch.setattr(SideBySide, "_fits", lambda self, kwargs: rode.append(original(self, kwargs)) or rode[-1])
    fast = tokens(model, inputs, method)
    assert rode[0] is not method.startswith("icd"), "the disturbed prompt is longer than the model's own"
    monkeypatch.setattr(SideBySide, "_fits", lambda self, kwargs: False)
    assert tokens(model, inputs, method) == fast


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}, {"output_hidden_states": True}])
def test_where_rows_cannot_ride_the_weaker_reader_goes_alone(options, model, inputs, monkeypatch):
    fast = tokens(model, inputs, "m3id:gamma=0.2", **options)
    monkeypatch.setattr(SideBySide, "riding", lambda self: torch.no_grad())
    assert tokens(model, inputs, "m3id:gamma=0.2", **options) == fast


@pytest.mark.parametrize("family", ["llava-next", "gemma3", "qwen2-vl"])
def test_two_streams_on_other_families(family, monkeypatch, pictures):
    lvlm = load(*build(family))
    inputs = lvlm.inputs(pictures[:2], ["Describe it.", "What is in this picture, then?"])
    fast = tokens(lvlm, inputs, "m3id:gamma=0.5", max_new_tokens=6, min_new_tokens=6)
    monkeypatch.setattr(SideBySide, "riding", lambda self: torch.no_grad())
    assert tokens(lvlm, inputs, "m3id:gamma=0.5", max_new_tokens=6, min_new_tokens=6) == fast


@pytest.mark.parametrize(
    "method",
    ["snapkv:keep=0.3:window=6", "h2o:keep=0.3", "streaming-llm:window=10", "streaming-llm:window=10:prefill=windowed"],
)
@pytest.mark.parametrize("family", ["testbed", "qwen2.5-vl"])
def test_keys_that_left_the_cache_are_those_that_were_hidden(method, family, model, pictures, monkeypatch):
    """Rows of different lengths; query heads that share keys on the second family."""
    lvlm = model if family == "testbed" else load(*build(family))
    inputs = lvlm.inputs(pictures[:2], ["Describe it.", "What is in this picture, then?"])
    fast, kept = tokens(lvlm, inputs, method)
    for kind in (SnapKV, H2O, StreamingLLM):
        monkeypatch.setattr(kind, "attends", HidesKeys.attends)
    slow, whole = tokens(lvlm, inputs, method)
    assert fast == slow
    assert kept < whole if family != "testbed" else kept < 0.6 * whole


@pytest.mark.parametrize("family", ["random", "gemma3", "qwen3-vl", "blip-2"])
def test_heads_silenced_together_give_what_one_pass_each_gives(family, random_model, pictures):
    """On models that tell early layers of the picture as well, the slow way is taken where it is needed."""
    lvlm = random_model if family == "random" else load(*build(family))
    inputs = lvlm.inputs(pictures[:2], "Describe it.")
    captions = [torch.tensor([7, 8, 9]), torch.tensor([11])]
    slow = exact_contributions(lvlm, inputs, captions, step_by_step=True)
    assert slow.abs().max() > 1e-3
    torch.testing.assert_close(exact_contributions(lvlm, inputs, captions), slow, rtol=1e-3, atol=1e-4)


def test_modules_run_their_own_forward_and_can_still_be_traced(model, inputs):
    plain = read(model, inputs, "z")["z"]
    fronts = [m.__dict__.get("forward") for m in model.hf.modules()]
    assert any(f is not None for f in fronts)
    with untraced(model.hf):
        assert all(m.__dict__.get("forward") is None for m in model.hf.modules())
        with traceable(model.hf):
            assert [m.__dict__.get("forward") for m in model.hf.modules()] == fronts
        assert torch.equal(read(model, inputs, "z")["z"], plain)
    assert [m.__dict__.get("forward") for m in model.hf.modules()] == fronts


def test_factors_that_change_while_open_are_followed(model, inputs):
    scale = torch.full((4, model.n_layers, model.n_heads), 2.0)
    with scaled_heads(model, scale):
        run = lambda: model.hf(**inputs.kwargs(), logits_to_keep=1).logits  # noqa: E731
        with torch.no_grad():
            first = run()
            scale.fill_(1.0)
            assert not torch.equal(first, run())
    with torch.no_grad():
        now = model.hf(**inputs.kwargs(), logits_to_keep=1).logits
        with scaled_heads(model, scale + 1):
            again = model.hf(**inputs.kwargs(), logits_to_keep=1).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, now)


def test_a_batch_is_taken_by_one_process_only(tmp_path):
    every = [Batch(m, n, (n,)) for m in range(2) for n in range(5)]
    mine, others = own_and_others(every, 1, 2)
    assert [(b.method, b.number) for b in mine] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert [(b.method, b.number) for b in others][:2] == [(1, 4), (1, 2)], "from the end"
    first, second = (Claims.of(tmp_path, "x", 2) for _ in range(2))
    first.begin()
    assert first.take(every[0])
    assert not second.take(every[0])
    assert second.take(every[1])
    first.begin()
    assert second.take(every[0]), "a new launch begins anew"
    alone = Claims.of(tmp_path, "x", 1)
    assert alone.take(every[0])
    assert alone.take(every[0])
    alone.clear()
    assert not list(tmp_path.iterdir())


def test_ranks_with_a_slow_one_and_kills_give_the_records_of_one_process(tmp_path, capsys):
    options = ["--ranks", "4", "--images", "24", "--seconds", "0.05", "--disk-seconds", "0.002", "--kills", "1"]
    cli.main(["bench", "ranks", *options, "--out", str(tmp_path / "ranks.json")])
    found = json.loads((tmp_path / "ranks.json").read_text())["found"]
    assert json.loads(capsys.readouterr().out) == found
    assert found["came_through"] == [False, True]
    assert found["same_records_as_one_process"]
    assert found["files_left"] == ["manifest.json", "x.jsonl"]
    static = 9 * 4 * 0.05  # the slow rank's own part alone
    assert found["longest_wait_for_another_rank"] < 0.5 * static


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch, capsys):
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        cli.main(["--version"])
        assert os.environ["OMP_WAIT_POLICY"] == expected
    capsys.readouterr()


def test_ratios_pair_the_turns():
    a, b = Timing((2.0, 6.0, 3.0), (1.0, 2.0, 3.0)), Timing((1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    assert a.against(b) == Spread(2.0, 1.0, 3.0)
    assert a.against(b, wall=True) == Spread(2.0, 1.0, 3.0)
    assert Line("x", Spread(1.0, 1.0, 1.0), aim=1.0).reached
    assert not Line("x", Spread(1.0, 1.0, 1.0), aim=3.0, lower=False).reached
    order: list[str] = []
    times = alternating({n: lambda n=n: order.append(n) for n in "ab"}, 2, lambda: None)
    assert "".join(order) == "ababab"
    assert len(times["a"].wall) == 2


def test_the_table_is_measured_row_by_row_and_goes_on(tmp_path, monkeypatch, capsys):
    options = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--tokens", "2", "--batches", "1"]
    options += ["--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    cli.main(["bench", "table", "--rows", "greedy", *options])
    first = json.loads((tmp_path / "tiny.json").read_text())
    (row,) = first["rows"]
    assert row["lines"][0]["value"]["median"] > 0
    assert row["machine"]["cores"]
    cli.main(["bench", "table", "--rows", "greedy,capture", *options])
    second = json.loads((tmp_path / "tiny.json").read_text())
    assert [r["name"] for r in second["rows"]] == ["greedy", "capture"]
    assert second["rows"][0] == row, "not measured again"
    assert (tmp_path / "tiny.png").exists()
    with pytest.raises(ValueError, match="rows are greedy, "):
        command.BenchTable(rows="x")
    with pytest.raises(ValueError, match="size is one of tiny"):
        command.BenchTable(size="x")


def test_the_7b_row_runs_at_a_small_size():
    model = SIZES["tiny-7b"].make(torch.device("cpu"))
    inputs = inputs_of(model, 2)
    assert model.dtype == torch.bfloat16
    assert inputs.image_mask.sum(1).tolist() == [16, 16]
    assert model.generate(inputs, max_new_tokens=2, min_new_tokens=2).cache_bytes > 0


def test_what_a_study_costs_is_reckoned_from_what_was_measured(monkeypatch):
    monkeypatch.setattr(scale, "FIGURES", Path(__file__).parents[1] / "figures" / "bench")
    found = scale.ratios()
    assert len(found) == 12
    assert found["greedy"] == 1
    assert all(0.1 < value < 100 for value in found.values())
    eight, sixty_four = (scale.cost(scale.Shape(), found, 40_000, gpus) for gpus in (8, 64))
    assert eight["gpu_hours"] == sixty_four["gpu_hours"]
    assert eight["wall_hours"] == pytest.approx(8 * sixty_four["wall_hours"], rel=0.01)


def test_a_row_that_is_not_measured_at_a_size_is_refused():
    with pytest.raises(ValueError, match="growth is not measured at size smollm2; leave it out of rows"):
        command.BenchTable(rows="greedy,growth", size="smollm2")
