"""Runs that go on whatever happens: kills, bad images, short memory, a full disk, two at once, several processes."""

import errno
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from interp import study
from interp.cli import main
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.engine import halving
from interp.experiments.records import Records
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
    run_study(StudyConfig(**SMALL, out=str(out)))
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
    real = study.caption_records

    def tight(model, samples, *rest):
        tried.append(len(samples))
        if len(samples) > 1 or samples[0].image_id == poor:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, samples, *rest)

    monkeypatch.setattr(study, "caption_records", tight)
    with pytest.raises(SystemExit) as stopped:
        main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 1
    assert max(tried) == 2
    failures = lines(tmp_path / "run" / "failures.jsonl")
    assert {(f["image_id"], f["method"]) for f in failures} == {(poor, "greedy"), (poor, "vhr")}
    assert "out of memory" in failures[0]["error"]
    captions = {(r["image_id"], r["method"]): r["caption"] for r in lines(tmp_path / "run" / "captions.jsonl")}
    assert captions == {(r["image_id"], r["method"]): r["caption"] for r in whole if r["image_id"] != poor}
    monkeypatch.undo()
    stale = {"image_id": poor, "method": "greedy", "error": "of a run that was killed"}
    Records(tmp_path / "run" / "failures.0.jsonl").append([stale])
    main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    found = lines(tmp_path / "run" / "captions.jsonl")
    assert [(r["image_id"], r["caption"]) for r in found] == [(r["image_id"], r["caption"]) for r in whole]
    assert not (tmp_path / "run" / "failures.jsonl").exists()


def test_halving_names_what_does_not_fit():
    def work(samples):
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
    real, written = Records.append, []

    def full(self, rows):
        rows = list(rows)
        written.extend(rows)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, rows)

    monkeypatch.setattr(Records, "append", full)
    with pytest.raises(SystemExit) as stopped:
        main(["study", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert lines(tmp_path / "run" / "captions.jsonl") == whole[:4]
    run_study(StudyConfig(**SMALL, out=str(tmp_path / "run")))
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
        run_study(StudyConfig(**few, ids=str(tmp_path / name), out=str(out)))
        assert [row["image_id"] for row in lines(out / "captions.jsonl")] == ids
    again = tmp_path / "run-ids.txt" / "manifest.json"
    run_study(StudyConfig(**few, ids=str(again), out=str(tmp_path / "again")))
    assert lines(tmp_path / "again" / "captions.jsonl") == lines(out / "captions.jsonl")
    for text, message in (("12 x", "cannot read image ids"), ("99999", "got 1 others")):
        (tmp_path / "wrong.txt").write_text(text)
        with pytest.raises(SystemExit):
            main(["study", "--ids", str(tmp_path / "wrong.txt"), "--out", str(tmp_path / "no")])
        assert message in capsys.readouterr().err
