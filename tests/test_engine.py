"""Runs that go on whatever happens: kills, bad images, short memory, a full disk, two at once, several processes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configured import configured
from filelock import FileLock

from interp.cli import main
from interp.experiments import captions as captions_module
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.config import RunConfig
from interp.experiments.engine import Job, Run, Shard, cut, halving, is_out_of_memory
from interp.experiments.manifest import Manifest
from interp.experiments.reading import read_batches
from interp.experiments.records import FailureRecord, LikelihoodRecord, RecordFile, read_records
from interp.models import NonFiniteLogitsError
from interp.testbed.export import export

SMALL: dict[str, Any] = {"limit": 6, "batch_size": 2, "max_new_tokens": 16, "methods": "greedy,vhr"}
ARGUMENTS = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict[str, Any]]:
    """The captions of an unbroken run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(configured(StudyConfig, **SMALL, out=str(out)))
    return lines(out / "captions.jsonl")


def test_killed_again_and_again(whole, tmp_path):
    out, chance = tmp_path / "run", random.Random(0)
    command = [sys.executable, "-m", "interp", "study", *ARGUMENTS, "--out", str(out)]
    records, seen = out / "captions.jsonl", 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            if records.exists() and records.stat().st_size > seen:
                time.sleep(chance.random() * 0.3)
                break
        process.kill()
        process.wait()
        seen = records.stat().st_size
    subprocess.run(command, check=True, capture_output=True)
    assert lines(records) == whole
    assert not (out / ".lock").exists()


def test_short_memory_halves_the_batch(whole, tmp_path, monkeypatch):
    """Batches of two do not fit, one image never does: it is listed, the others are as in an unbroken run."""
    poor, tried = whole[2]["image_id"], []
    real = captions_module.caption_records

    def tight(model, samples, *rest):
        tried.append(len(samples))
        if len(samples) > 1 or samples[0].image_id == poor:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, samples, *rest)

    monkeypatch.setattr(captions_module, "caption_records", tight)
    with pytest.raises(SystemExit) as stopped:
        main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 1
    assert max(tried) == 2
    failures = lines(tmp_path / "run" / "failures.jsonl")
    assert {(f["image_id"], f["method"]) for f in failures} == {(poor, "greedy"), (poor, "vhr")}
    assert "out of memory" in failures[0]["error"]
    written = {(r["image_id"], r["method"]): r["caption"] for r in lines(tmp_path / "run" / "captions.jsonl")}
    assert written == {(r["image_id"], r["method"]): r["caption"] for r in whole if r["image_id"] != poor}
    monkeypatch.undo()
    stale = FailureRecord(poor, "greedy", "of a run that was killed")
    RecordFile(tmp_path / "run" / "failures.0.jsonl", FailureRecord).append([stale])
    main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    found = lines(tmp_path / "run" / "captions.jsonl")
    assert [(r["image_id"], r["caption"]) for r in found] == [(r["image_id"], r["caption"]) for r in whole]
    assert not (tmp_path / "run" / "failures.jsonl").exists()


def test_halving_names_what_does_not_fit():
    def work(samples) -> Any:
        if len(samples) > 1 or samples[0] == "c":
            raise MemoryError("no")
        return [{"sample": samples[0]}]

    found = list(halving([(i, s) for i, s in enumerate("abc")], work))
    assert [part[0][0] for part, _ in found] == [0, 1, 2]
    assert [rows if isinstance(rows, str) else rows[0]["sample"] for _, rows in found] == [
        "a",
        "b",
        "out of memory: no",
    ]


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch, capsys):
    real, written = RecordFile.append, []

    def full(self, rows):
        rows = list(rows)
        written.extend(rows)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, rows)

    monkeypatch.setattr(RecordFile, "append", full)
    with pytest.raises(SystemExit) as stopped:
        main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert lines(tmp_path / "run" / "captions.jsonl") == whole[:4]
    run_study(configured(StudyConfig, **SMALL, out=str(tmp_path / "run")))
    assert lines(tmp_path / "run" / "captions.jsonl") == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_listed_and_the_rest_goes_on(workers, tmp_path, capsys):
    export(tmp_path / "coco", "broken", "test", 4)
    picture = tmp_path / "coco" / "test" / "test_000001.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:300])
    few = ["--limit", "4", "--batch-size", "2", "--max-new-tokens", "8", "--methods", "greedy"]
    few += ["--workers", str(workers), "--data", f"coco:{tmp_path / 'coco'}", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["study", *few])
    assert stopped.value.code == 1
    assert "1 captions failed" in capsys.readouterr().out
    (failure,) = lines(tmp_path / "run" / "failures.jsonl")
    assert failure["image_id"] == 1
    assert "cannot read the image" in failure["error"]
    assert [r["image_id"] for r in lines(tmp_path / "run" / "captions.jsonl")] == [0, 2, 3]
    picture.write_bytes(content)
    main(["study", *few])
    assert [r["image_id"] for r in lines(tmp_path / "run" / "captions.jsonl")] == [0, 1, 2, 3], "in their order"


def test_a_second_run_on_the_folder_is_refused(tmp_path, capsys):
    main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(SystemExit) as stopped:
        main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "another run is writing to" in capsys.readouterr().err


def test_a_second_training_on_the_folder_is_refused(tmp_path, capsys):
    with FileLock(tmp_path / ".lock"), pytest.raises(SystemExit) as stopped:
        main(["testbed", "train", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "another run is writing to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_two_processes_give_what_one_gives(whole, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "interp", "study", *ARGUMENTS]
    done = subprocess.run([*launch, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines(tmp_path / "run" / "captions.jsonl") == whole
    assert not list((tmp_path / "run").glob("captions.*.jsonl"))
    assert done.stdout.count("with 95 % bootstrap intervals") == 1, "one of them prints"


def test_ids_from_a_file(whole, tmp_path, capsys):
    ids = sorted({row["image_id"] for row in whole})[:3]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, reversed(ids))))
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    few: Any = SMALL | {"methods": "greedy"}
    for name in ("ids.txt", "ids.json"):
        out = tmp_path / f"run-{name}"
        run_study(configured(StudyConfig, **few, ids=str(tmp_path / name), out=str(out)))
        assert [row["image_id"] for row in lines(out / "captions.jsonl")] == ids
    again = tmp_path / "run-ids.txt" / "manifest.json"
    run_study(configured(StudyConfig, **few, ids=str(again), out=str(tmp_path / "again")))
    assert lines(tmp_path / "again" / "captions.jsonl") == lines(out / "captions.jsonl")
    for text, message in (("x", "got 1 others, such as ['x']"), ("99999", "got 1 others"), ("1\n1", "listed twice")):
        (tmp_path / "wrong.txt").write_text(text)
        with pytest.raises(SystemExit):
            main(["study", "--ids", str(tmp_path / "wrong.txt"), "--out", str(tmp_path / "no")])
        assert message in capsys.readouterr().err


def as_transformers_does() -> None:
    try:
        np.empty(2**50, dtype=np.uint8)
    except MemoryError as error:
        raise ValueError("Unable to create tensor, you should activate padding") from error


def test_what_counts_as_short_memory():
    """Torch says RuntimeError on a CPU; transformers wraps numpy's MemoryError in a ValueError about padding."""
    with pytest.raises(ValueError, match="padding") as wrapped:
        as_transformers_does()
    assert is_out_of_memory(wrapped.value)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("Unable to create tensor"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_logits_that_are_not_finite_name_their_image_and_other_errors_end_the_run():
    def work(samples):
        if "c" in samples:
            raise NonFiniteLogitsError("logits are not finite")
        return [LikelihoodRecord(0, "m", 0.0, 1) for _ in samples]

    found = {part[0][0]: rows for part, rows in halving(list(enumerate("abcd")), work) if isinstance(rows, str)}
    assert found == {2: "logits are not finite"}
    with pytest.raises(ValueError, match="a user's mistake"):
        list(halving([(0, "a")], lambda _: (_ for _ in ()).throw(ValueError("a user's mistake"))))


def test_a_method_that_breaks_the_logits_fails_and_is_named(tmp_path, monkeypatch):
    """Greedy's captions come through; the run ends with a clear error, as there is nothing to compare."""
    real = captions_module.caption_records

    def broken(model, samples, parser, config, name, method):
        if name == "vhr":
            raise NonFiniteLogitsError(f"the logits of the next token are not finite with {name}")
        return real(model, samples, parser, config, name, method)

    monkeypatch.setattr(captions_module, "caption_records", broken)
    with pytest.raises(ValueError, match=r"no image came through with every method; .*failures.jsonl says why"):
        run_study(configured(StudyConfig, **(SMALL | {"limit": 2}), out=str(tmp_path / "run")))
    failures = lines(tmp_path / "run" / "failures.jsonl")
    assert [f["method"] for f in failures] == ["vhr", "vhr"]
    assert "not finite with vhr" in failures[0]["error"]
    assert len(lines(tmp_path / "run" / "captions.jsonl")) == 2


def test_batches_for_a_method_that_needs_a_second_row():
    assert cut(range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut(range(7), 3, least=2) == [[0, 1, 2], [3, 4, 5, 6]], "the last one is never of one row"
    assert cut(range(6), 3, least=2) == [[0, 1, 2], [3, 4, 5]]
    assert cut(range(2), 3, least=2) == [[0, 1]]

    def work(samples):
        raise MemoryError("no")

    sizes = [len(part) for part, _ in halving(list(enumerate("abcde")), work, least=2)]
    assert sizes == [2, 3], "never halved below two"
    ((_, rows),) = halving([(0, "a")], work, least=2)
    assert "needs 2 rows" in str(rows)
    job = Job("x", LikelihoodRecord, [1, 2, 3], ["m"], str, lambda *_: [], least_rows={"m": 2})
    job.check(2)
    with pytest.raises(ValueError, match="m needs at least 2 images in a batch, got 3 in all and batches of 1"):
        job.check(1)


def test_resampling_runs_with_a_last_batch_of_one_row(tmp_path):
    """Its warm-up has two images; of three images in batches of two, all are one batch."""
    few: Any = {"limit": 3, "batch_size": 2, "max_new_tokens": 8, "methods": "edit:heads=L3H1+L4H2:op=resample"}
    summary = run_study(configured(StudyConfig, **few, out=str(tmp_path / "run")))
    assert summary is not None
    assert summary.failures == 0
    assert len(lines(tmp_path / "run" / "captions.jsonl")) == 6
    with pytest.raises(ValueError, match="needs at least 2 captions in a batch"):
        run_study(configured(StudyConfig, **(few | {"batch_size": 1}), out=str(tmp_path / "one")))
    assert not (tmp_path / "one").exists()


def made(run: Run, names: list[str], items: list[int], fail: set[int]) -> list[int] | None:
    """The images of the records of a job that fails on some items."""

    def load(item):
        if item in fail:
            raise ValueError("torn")
        return item

    def work(name, samples):
        return [LikelihoodRecord(i, name, float(i), 1) for i in samples]

    found = run.made(Job("x", LikelihoodRecord, items, names, load, work), RunConfig(batch_size=2))
    return None if found is None else [int(r.image_id) for r in found]


def test_processes_of_another_launch_leave_what_one_process_goes_on_with(tmp_path):
    manifest, items = Manifest.of(seed=0), list(range(7))
    with Run.opened(tmp_path, manifest, Shard()) as run:
        RecordFile(tmp_path / "x.1.jsonl", LikelihoodRecord).append(
            [LikelihoodRecord(i, "m", float(i), 1) for i in (3, 2)]
        )
        RecordFile(tmp_path / "x.jsonl", LikelihoodRecord).append([LikelihoodRecord(3, "m", 3.0, 1)])  # joined, killed
        assert made(run, ["m"], items, {5}) == [0, 1, 2, 3, 4, 6]
        assert [f.item for f in run.failures] == [5]
        assert made(run, ["m"], items, set()) == items
        assert not run.failures
    assert {p.name for p in tmp_path.iterdir()} == {"manifest.json", "x.jsonl"}


def test_records_that_are_not_of_the_run_are_refused(tmp_path):
    with Run.opened(tmp_path, Manifest.of(seed=0), Shard()) as run:
        RecordFile(tmp_path / "x.jsonl", LikelihoodRecord).append([LikelihoodRecord(9, "m", 0.0, 1)])
        with pytest.raises(ValueError, match=r"x.jsonl: \(9, 'm'\) is not of this run"):
            made(run, ["m"], [1, 2], set())
        (tmp_path / "x.jsonl").unlink()
        twice = [LikelihoodRecord(1, "m", 0.0, 1), LikelihoodRecord(1, "m", 0.5, 1)]
        RecordFile(tmp_path / "x.jsonl", LikelihoodRecord).append(twice)
        with pytest.raises(ValueError, match="two different records"):
            made(run, ["m"], [1, 2], set())
        (tmp_path / "x.jsonl").unlink()
        RecordFile(tmp_path / "x.jsonl", LikelihoodRecord).append([LikelihoodRecord(1, "m", 1.0, 1)] * 2)
        assert made(run, ["m"], [1, 2], set()) == [1, 2]
        assert len(read_records(tmp_path / "x.jsonl", LikelihoodRecord)) == 2
    (tmp_path / "manifest.json").write_text("")
    with pytest.raises(ValueError, match=r"manifest.json cannot be read.*: it is no JSON in UTF-8$"):
        Manifest.of(seed=0).check(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker looks between items")
def test_readers_end_with_the_process_that_started_them(tmp_path):
    """Killed with SIGKILL while a reader is in the middle of an item: the reader does not live on."""
    main_process = os.fork()
    if main_process == 0:
        for _ in read_batches([[i] for i in range(4)], partial(slowly, tmp_path), workers=2):
            pass
        os._exit(0)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    readers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(readers) == 2
    os.kill(main_process, signal.SIGKILL)
    os.waitpid(main_process, 0)
    while any(map(alive, readers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, readers))


def slowly(folder: Path, item: Any) -> Any:
    (folder / str(os.getpid())).touch()
    time.sleep(120)
    return item


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
