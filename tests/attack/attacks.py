"""The attacks, by group: files, pictures, model folders, settings, rankings, runs, and the Python interface."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interp
from attack import material
from attack.ledger import Attack, Wanted, command
from attack.material import BYTES, LINES, Damage
from interp.models import Inputs

SCORING: dict[str, tuple[str, ...]] = {
    "chair {captions} --truth {truth}": ("captions", "truth"),
    "chair {captions} --coco {coco}": ("captions", "instances", "references"),
    "pope {answers} --questions {questions}": ("answers", "questions"),
    "opope {captions} --questions {questions}": ("captions", "questions"),
    "amber {responses} --annotations {amber} --associations {relation}": ("responses", "amber", "relation"),
}
"""Commands that score files, and the files that decide what each says."""
HARMLESS = {
    ("references", "removed"),
    ("references", "a folder"),
    ("relation", "an object"),
    ("truth", "last byte off"),
}
CONTENT: dict[str, Any] = {
    "truth": material.TRUTH,
    "amber": material.AMBER,
    "relation": material.RELATION,
    "responses": material.RESPONSES,
    "instances": material.INSTANCES,
    "references": material.REFERENCES,
}


def _scoring(form: str, name: str, damage: Damage, folder: Path) -> Sequence[str]:
    found = material.files(folder / "files")
    damage(found[name])
    return form.format(coco=folder / "files" / "coco", **found).split()


def scored_files() -> Iterator[Attack]:
    """Every damage of every file that is scored, lines damaged in the middle, and every value of another type."""
    for form, names in SCORING.items():
        command_name = form.split()[0]
        for name in names:
            for kind, damage in BYTES.items():
                act = partial(_scoring, form, name, damage)
                wanted: Wanted = "any" if (name, kind) in HARMLESS else "refused"
                yield Attack("scored files: bytes", f"{command_name}: {name}: {kind}", act, wanted)
            if name in ("captions", "answers", "questions"):
                rows = {"captions": material.CAPTIONS, "answers": material.ANSWERS, "questions": material.QUESTIONS}
                for kind in LINES:
                    act = partial(_scoring, form, name, partial(material.lines_damaged, kind=kind))
                    yield Attack("scored files: lines", f"{command_name}: {name}: {kind}", act)
                for what, content in material.mutations(rows[name]):
                    if isinstance(content, list) and content:
                        act = partial(_scoring, form, name, partial(_lines, content=content))
                        wanted = "any" if what == "0/question_id = 'text'" else "refused"  # a name, in OPOPE
                        yield Attack("scored files: values", f"{command_name}: {name}: {what}", act, wanted)
            else:
                for what, content in material.mutations(CONTENT[name]):
                    act = partial(_scoring, form, name, partial(_json, content=content))
                    wanted = "any" if (name, what) == ("relation", "without dog") else "refused"
                    yield Attack("scored files: values", f"{command_name}: {name}: {what}", act, wanted)


def _lines(path: Path, content: Any) -> None:
    material.jsonl(path, content)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def pictures() -> Iterator[Attack]:
    """Pictures mutated, cut, too large, of no known kind: `interp heads` reads each or names it."""
    rng = np.random.default_rng(0)
    for kind in ("png", "gif", "bmp", "tiff", "ppm", "tga", "dds", "ico", "sgi", "pcx", "jpeg"):
        for number in range(4):
            yield Attack(
                "pictures", f"{kind} mutated, {number}", partial(_mutated, kind, int(rng.integers(10**9))), "any"
            )
    for kind, damage in BYTES.items():
        if kind != "last byte off":
            yield Attack("pictures", kind, partial(_picture, damage))
    yield Attack("pictures", "decompression bomb", partial(_picture, _bomb))


def _mutated(kind: str, seed: int, folder: Path) -> Sequence[str]:
    rng, path = np.random.default_rng(seed), folder / f"picture.{kind}"
    material.picture(path)
    content = bytearray(path.read_bytes())
    for at in rng.integers(0, min(len(content), 300), 6):
        content[at] = rng.integers(0, 256)
    path.write_bytes(content)
    return ["heads", "--image", str(path), "--top", "1"]


def _picture(damage: Damage, folder: Path) -> Sequence[str]:
    path = material.picture(folder / "picture.png")
    damage(path)
    return ["heads", "--image", str(path)]


def _bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))


PROJECTION = "language_model.model.layers.0.self_attn.o_proj.weight"
WEIGHTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "one missing": lambda w: w.pop(PROJECTION),
    "all missing": lambda w: (w.clear(), w.update(x=torch.zeros(1))),
    "one more": lambda w: w.update(more=torch.zeros(2)),
    "misshapen": lambda w: w.update({PROJECTION: w[PROJECTION][:-1].clone()}),
    "transposed embedding": lambda w: w.update(
        {"language_model.lm_head.weight": w["language_model.lm_head.weight"].T.contiguous()}
    ),
    "NaN": lambda w: w[PROJECTION].view(-1)[7:8].fill_(torch.nan),
    "infinity": lambda w: w[PROJECTION].view(-1)[7:8].fill_(torch.inf),
    "named otherwise": lambda w: w.update({"model.what": w.pop(PROJECTION)}),
    "integers": lambda w: w.update({PROJECTION: w[PROJECTION].to(torch.int8)}),
}
TEMPLATES = {
    "long loop": "{% for i in range(10000000) %}x{% endfor %}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no syntax": "{% for %}",
    "attack": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "attack by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "division": "{{ 1 // 0 }}",
    "unknown": "{{ nothing.of.this }}",
    "no picture": "{{ messages[0]['role'] }}",
    "raises": "{{ raise_exception('no') }}",
    "much": "{{ 'x' * 30000000 }}",
    "empty": "",
}
PARTS = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def model_folders() -> Iterator[Attack]:
    """Weights, templates, processors, tokenizers and configurations that are not whole: refused, or of no effect."""
    for kind, change in WEIGHTS.items():
        damage = partial(_weights, change=change)
        for name in ("doctor", "heads"):
            yield Attack("model folders: weights", f"{name}: {kind}", partial(_model, name, damage))
    for kind, damage in BYTES.items():
        if kind != "last byte off":
            change = partial(_part, part="model.safetensors", damage=damage)
            yield Attack("model folders: weights", f"heads: {kind}", partial(_model, "heads", change))
    for kind, template in TEMPLATES.items():
        change = partial(_template, template=template)
        yield Attack("model folders: templates", kind, partial(_model, "heads", change), "refused")
    intact = partial(_model, "heads", lambda _: None)
    for part in PARTS:
        for kind, damage in BYTES.items():
            change = partial(_part, part=part, damage=damage)
            act = partial(_model, "heads", change)
            yield Attack("model folders: other files", f"{part}: {kind}", act, "same", intact)


def _model(name: str, damage: Damage, folder: Path) -> Sequence[str]:
    model = material.model_folder(folder / "model")
    damage(model)
    if name == "doctor":
        return ["doctor", str(model)]
    return ["heads", "--image", str(material.picture(folder / "picture.png")), "--model", str(model)]


def _weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    material.weights_changed(model, change)


def _part(model: Path, part: str, damage: Damage) -> None:
    damage(model / part)


def _template(model: Path, template: str) -> None:
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")


STUDY = ("study", "--limit", "2", "--max-new-tokens", "4")
BAD_SETTINGS: dict[str, tuple[str, ...]] = {
    "dtypes": ("--dtype", "foo"),
    "dtype int8": ("--dtype", "int8"),
    "device meta": ("--device", "meta"),
    "device foo": ("--device", "foo"),
    "device cuda:99": ("--device", "cuda:99"),
    "device map": ("--device-map", "foo"),
    "attention": ("--attn-implementation", "foo"),
    "model": ("--model", "none/of/this"),
}
METHODS = (
    *("vhr:alpha=1e20", "vhr:alpha=inf", "vhr:alpha=nan", "vcd:alpha=nan", "pai:alpha=nan", "m3id:gamma=nan"),
    *("m3id:gamma=1000", "m3id:confidence=0", "fastv:layer=99", "dola:layers=99", "pai:layers=99", "spin:layers=99"),
    *("vcd:image_free=foo", "edit:heads=L0H0:op=mean", "edit:heads=L99H0", "edit:heads=random0.1%", "vhr:foo=1", "foo"),
    *("edit:heads=L0H0:factor=nan", "random-heads:seed=" + "9" * 30, "random-heads:seed=-1", "vhr:alpha=1" + "0" * 300),
    *(
        "beams:num_beams=0",
        "sampling:temperature=-1",
        "sampling:temperature=nan",
        "vasparse:mask_rate=2",
        "vhr,vhr",
        "",
    ),
)


def settings() -> Iterator[Attack]:
    """Settings that nothing can do, on every command that takes them."""
    models = {
        "study": (*STUDY,),
        "sweep": ("sweep", "--limit", "2", "--vary", "alpha=1", "--methods", "vhr", "--max-new-tokens", "4"),
        "ablate": ("ablate", "--limit", "2", "--heads", "L0H0", "--max-new-tokens", "4"),
        "attention": ("attention", "--limit", "1", "--max-new-tokens", "4"),
        "causal": ("causal", "--limit", "1"),
        "sinks": ("sinks", "--n", "1"),
        "heads": ("heads", "--image", "{picture}"),
        "overlay": ("overlay", "--image", "{picture}", "--token", "fork"),
    }
    for name, args in models.items():
        for kind, bad in BAD_SETTINGS.items():
            yield Attack("settings: models", f"{name}: {kind}", partial(_settings, (*args, *bad), name))
    for method in METHODS:
        yield Attack("settings: methods", method[:40], partial(_settings, (*STUDY, "--methods", method), "study"))
    numbers = {
        "seed -1": (*STUDY, "--seed", "-1"),
        "seed 2^70": (*STUDY, "--seed", str(2**70)),
        "limit 0": ("study", "--limit", "0"),
        "limit nan": ("study", "--limit", "nan"),
        "batch size 0": (*STUDY, "--batch-size", "0"),
        "new tokens beyond the positions": ("study", "--limit", "2", "--max-new-tokens", "5000"),
        "prompt beyond the positions": (*STUDY, "--prompt", "fork " * 2000),
        "top-k 99": (*STUDY, "--top-k", "99"),
        "split foo": (*STUDY, "--split", "foo"),
        "data foo": (*STUDY, "--data", "foo"),
        "vary twice": ("sweep", "--limit", "2", "--methods", "vhr", "--vary", "alpha=1", "alpha=2"),
        "vary nothing": ("sweep", "--limit", "2", "--methods", "vhr", "--vary", "alpha="),
        "train on foo": ("testbed", "train", "--device", "foo", "--scenes", "100"),
        "train on meta": ("testbed", "train", "--device", "meta", "--scenes", "100"),
        "evaluate on meta": ("testbed", "evaluate", "--device", "meta", "--limit", "1"),
    }
    for kind, args in numbers.items():
        yield Attack("settings: numbers", kind, partial(_settings, args, args[0]))
    for kind, text in {"halves": "[3.7]", "truths": "[true]", "doubled": "[3, 3]", "null": "null", "texts": '["a"]',
                       "nested": "[[1]]", "empty": "", "no list": "{}", "deep": "[" * 100_000, "of others": "[999999]",
                       "long": "9" * 5000, "infinite": "[Infinity]"}.items():  # fmt: skip
        yield Attack("settings: ids", kind, partial(_ids, text))


def _settings(args: Sequence[str], name: str, folder: Path) -> Sequence[str]:
    shown = [
        arg.format(picture=material.picture(folder / "picture.png")) if arg == "{picture}" else arg for arg in args
    ]
    out = [] if name in ("heads", "overlay", "sinks", "testbed") else ["--out", str(folder / "out")]
    return [*shown, *(["--out", str(folder / "out")] if "train" in args else out)]


def _ids(text: str, folder: Path) -> Sequence[str]:
    (folder / "ids.json").write_text(text, encoding="utf-8")
    return [*STUDY, "--ids", str(folder / "ids.json"), "--methods", "greedy", "--out", str(folder / "out")]


RANKINGS: dict[str, Damage] = {
    **{kind: damage for kind, damage in BYTES.items() if kind != "last byte off"},
    "strings": lambda p: np.savez(p, vhd=np.array([["a"] * 8] * 8)),
    "no map": lambda p: np.savez(p, nothing=np.zeros(3)),
    "no array": lambda p: np.savez(p),
    "NaN": lambda p: np.savez(p, vhd=np.full((8, 8), np.nan)),
    "infinity": lambda p: np.savez(p, vhd=np.full((8, 8), np.inf)),
    "another shape": lambda p: np.savez(p, vhd=np.zeros((3, 3))),
    "complex": lambda p: np.savez(p, vhd=np.zeros((8, 8), complex)),
    "objects": lambda p: np.savez(p, vhd=np.array([[None] * 8] * 8, dtype=object)),
    "npy": lambda p: _npy(p),
}


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((8, 8)))


def rankings() -> Iterator[Attack]:
    """Rankings of heads that are none."""
    for kind, damage in RANKINGS.items():
        yield Attack("rankings", kind, partial(_ranking, damage))


def _ranking(damage: Damage, folder: Path) -> Sequence[str]:
    path = folder / "heads.npz"
    np.savez(path, vhd=np.zeros((8, 8)))
    damage(path)
    method = "edit:heads=top:share=0.1:by=vhd"
    return [*STUDY, "--methods", method, "--ranking", str(path), "--out", str(folder / "out")]


RUNS: dict[str, tuple[str, ...]] = {
    "captions.jsonl": ("study", "--limit", "3", "--max-new-tokens", "6", "--methods", "greedy"),
    "answers.jsonl": ("study", "--task", "pope", "--limit", "1", "--methods", "greedy"),
}


def runs() -> Iterator[Attack]:
    """Runs that go on over damaged records, manifests or summaries: refused, or the same records at the end."""
    for records, args in RUNS.items():
        for file in (records, "manifest.json", "summary.json"):
            kinds = {**BYTES, **{k: partial(material.lines_damaged, kind=k) for k in LINES if file == records}}
            for kind, damage in kinds.items():
                if file == "summary.json" and kind == "a folder":
                    continue
                act = partial(_resumed, args, records, file, damage)
                yield Attack("runs gone on with", f"{args[1]} {file}: {kind}", act, "same")


_WHOLE: dict[str, Path] = {}


def _resumed(args: tuple[str, ...], records: str, file: str, damage: Damage, folder: Path) -> Callable[[], bool]:
    def go_on() -> bool:
        if records not in _WHOLE:
            _WHOLE[records] = folder.parent / f"whole-{records}"
            code, _, err = command([*args, "--out", str(_WHOLE[records])])
            assert code == 0, err
        shutil.copytree(_WHOLE[records], folder / "run")
        damage(folder / "run" / file)
        code, _, err = command([*args, "--out", str(folder / "run")])
        if code:
            raise ValueError(err)
        return rows(folder / "run" / records) == rows(_WHOLE[records] / records)

    return go_on


def rows(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without times."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def misuses() -> Iterator[Attack]:
    """Mistakes in Python: refused, and afterwards the model is as it was."""
    model = interp.load("testbed", check=False)
    picture = material.Image.new("RGB", (96, 96), "red")
    inputs = model.inputs([picture], "Describe.")
    _state(model, inputs)  # transformers puts hooks of its own at the first pass
    before = _state(model, inputs)
    calls: dict[str, Callable[[], Any]] = {
        "load a number": lambda: interp.load(3),  # pyright: ignore[reportArgumentType]
        "load nothing": lambda: interp.load(None),  # pyright: ignore[reportArgumentType]
        "load a module": lambda: interp.load(torch.nn.Linear(2, 2), model.processor),  # pyright: ignore
        "load without a processor": lambda: interp.load(model.hf),
        "load with a number for a processor": lambda: interp.load(model.hf, 3),
        "load with a dtype of integers": lambda: interp.load(model.hf, model.processor, dtype=torch.int8),
        "load to nowhere": lambda: interp.load(model.hf, model.processor, device="meta"),
        "load to two places": lambda: interp.load("testbed", device="cpu", device_map="auto"),
        "load a revision of a folder": lambda: interp.load("testbed", revision="main"),
        "no rows": lambda: model.inputs([], "Describe."),
        "a picture too small": lambda: model.inputs([material.Image.new("RGB", (1, 1))], "Describe."),
        "an array for a picture": lambda: model.inputs([np.zeros((9, 9, 3))], "Describe."),  # pyright: ignore
        "a prompt too long": lambda: model.inputs([picture], "fork " * 3000),
        "too many new tokens": lambda: model.generate(inputs, max_new_tokens=3000),
        "an unknown site": lambda: interp.read(model, inputs, "nothing"),
        "an edit of an unknown site": lambda: interp.run_with_edits(model, inputs, {"nothing": lambda _, z: z}),
        "an edit of another shape": lambda: interp.run_with_edits(model, inputs, {"z": lambda _, z: z[..., :1]}),
        "an edit that raises": lambda: interp.run_with_edits(model, inputs, {"z": _raise}),
        "a method that raises inside": lambda: _inside(model),
        "an unknown method": lambda: interp.parse_method("nothing"),
        "a method without a number": lambda: interp.VHR(alpha=float("nan")),
        "a method with a text": lambda: interp.VHR(alpha="x"),  # pyright: ignore[reportArgumentType]
    }
    for name, call in calls.items():
        yield Attack("Python", name, lambda _, call=call: call)
        yield Attack("Python: model as before", name, lambda _: lambda: _state(model, inputs) == before, "same")


def _raise(*_: Any) -> Any:
    raise ValueError("on purpose")


def _inside(model: Any) -> None:
    with interp.VHR()(model):
        raise ValueError("on purpose")


def _state(model: Any, inputs: Inputs) -> tuple[Any, ...]:
    """Hooks, backend, type and logits."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    with torch.no_grad():
        logits = model.hf(**inputs.kwargs(), use_cache=False).logits
    return hooks, model.backend, model.dtype, model.device, logits.sum().item()


GROUPS: dict[str, Callable[[], Iterator[Attack]]] = {
    "files": scored_files,
    "pictures": pictures,
    "models": model_folders,
    "settings": settings,
    "rankings": rankings,
    "runs": runs,
    "python": misuses,
}
