"""Records on disk: what is read back, and what is refused with file, line and remedy."""

import json
from dataclasses import replace

import numpy as np
import pytest

from interp.experiments.manifest import Manifest, content_digest, read_manifest
from interp.experiments.records import (
    AttentionRecord,
    CaptionRecord,
    FailureRecord,
    MentionRecord,
    RecordFile,
    TokenSums,
    read_records,
    to_json,
)

CAPTION = CaptionRecord(
    image_id=3,
    method="greedy",
    caption="A fork.",
    mentions=(MentionRecord("fork", "fork", True, 2, 6, 1, 1),),
    truth=("cup",),
    n_tokens=3,
    seconds=0.5,
    kv_bytes=10,
    tokens=[5, 6, 7],
    t_vhd=[0.5, 1, 2.25],
    vhd=[[1.0, 2.0], [3.0, 4.0]],
    sentences=((0, 3),),
)


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "captions.jsonl"
    RecordFile(path, CaptionRecord).append([CAPTION, replace(CAPTION, image_id="a.png")])
    first, second = read_records(path, CaptionRecord)
    assert first == CAPTION
    assert second.image_id == "a.png"
    row = json.loads(path.read_text().splitlines()[0])
    assert "heads" not in row, "what a record does not have is not written"
    assert list(row)[:4] == ["image_id", "method", "caption", "mentions"]


def test_arrays_come_back_bit_for_bit(tmp_path):
    values = np.array([[0.1, np.nan], [np.inf, -0.0]], dtype=np.float32)
    record = AttentionRecord(1, "greedy", 2, {"x": values}, (TokenSums("a", "word", 2, 0.1, 0.2, 0.3, position=4),))
    path = tmp_path / "a.jsonl"
    RecordFile(path, AttentionRecord).append([record])
    (again,) = read_records(path, AttentionRecord)
    assert again.arrays["x"].tobytes() == values.tobytes()
    assert again.tokens == record.tokens


def test_a_line_that_was_cut_is_dropped_and_left_alone_by_readers(tmp_path):
    path = tmp_path / "r.jsonl"
    one, two = (FailureRecord(i, "greedy", "torn\u2028\n") for i in (1, 2))
    RecordFile(path, FailureRecord).append([one])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"image_id": 1, "meth\xc3')
    assert read_records(path, FailureRecord) == [one]
    assert path.read_bytes() != whole, "a run may be writing"
    file = RecordFile(path, FailureRecord)
    assert path.read_bytes() == whole
    file.append([two])
    assert read_records(path, FailureRecord) == [one, two]


GOOD = {"image_id": 1, "method": "m", "error": "e"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image_id": 1, "met', "no JSON"),
        (b'{"image_id": 1, "met\xc3', "no JSON"),
        (b"", "no JSON"),
        (b"null", "expected an object, got None"),
        (b"[1, 2]", "expected an object"),
        (b"[" * 100_000, ""),
        (json.dumps(GOOD | {"colour": 1}).encode(), "unknown fields colour"),
        (b'{"image_id": 1, "method": "m"}', "no error"),
        (json.dumps(GOOD | {"image_id": None}).encode(), "image_id: expected int, got null"),
        (json.dumps(GOOD | {"image_id": True}).encode(), "image_id: expected int, got true"),
        (json.dumps(GOOD | {"image_id": 3.7}).encode(), "image_id: expected int, got 3.7"),
        (json.dumps(GOOD | {"method": ["m"]}).encode(), "method: expected str"),
    ],
)
def test_foreign_and_torn_lines_in_the_middle_are_refused(line, message, tmp_path):
    path = tmp_path / "failures.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, line, good, b""]))
    with pytest.raises(ValueError, match=r"failures.jsonl, line 2: not a record of this run .*Remove the line") as told:
        read_records(path, FailureRecord)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", [1, "2"]),
        ("tokens", [1, None]),
        ("vhd", [[1.0], [1.0, 2.0]]),
        ("sentences", [[0]]),
        ("truth", "cup"),
        ("mentions", [{"object": "fork"}]),
        ("mentions", {}),
        ("seconds", "0.5"),
    ],
)
def test_fields_of_another_type_are_refused(field, value, tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps(to_json(CAPTION) | {field: value}) + "\n")
    with pytest.raises(ValueError, match=f"line 1: not a record of this run .{field}"):
        read_records(path, CaptionRecord)


def test_a_folder_of_another_run_is_refused(tmp_path):
    manifest = Manifest.of(seed=1)
    manifest.claim(tmp_path / "run")
    manifest.claim(tmp_path / "run")
    assert read_manifest(tmp_path / "run")["seed"] == 1
    with pytest.raises(ValueError, match="differing: seed"):
        Manifest.of(seed=2).claim(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        manifest.claim(tmp_path / "other")
    with pytest.raises(ValueError, match="holds no run"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"versions": {', b"[1]", b"\xff", b"null"])
def test_a_manifest_that_cannot_be_read_names_itself_and_the_remedy(content, tmp_path):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json (cannot be read|is no manifest)"):
        Manifest.of(seed=1).claim(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == content


def test_a_file_goes_by_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"y")
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")
    with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
        content_digest(tmp_path / "nowhere")
