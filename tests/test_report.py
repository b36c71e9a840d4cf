"""The report of a run: what the records say is on the page, escaped, and the page works in a browser."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.data import open_data
from interp.evaluate.objects import ObjectParser
from interp.experiments.records import CaptionRecord, MentionRecord, to_json
from interp.models.layout import Piece
from interp.report.content import Look, captions_data, parts_of
from interp.report.looks import look_into
from interp.report.page import ReportConfig, fitting, rendered, write_report
from interp.report.tables import study_tables
from interp.trace.divergence import token_vhd
from interp.views.overlay import coarse

ROOT = Path(__file__).parent.parent
NASTY = "A <script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> cat & a </script>dog."


def caption(image_id: int, method: str, wrong: bool, text: str = "A cat and a dog.", **more: Any) -> CaptionRecord:
    """A caption of five words, a token each, that names a dog, which is there or not."""
    start = text.index("dog")
    dog = MentionRecord("dog", "dog", wrong, start, start + 3, 4, 1)
    ends = [*(m.end() for m in re.finditer(r"\S+", "A cat and a dog."))] if text.startswith("A cat") else None
    made: dict[str, Any] = {"mentions": (dog,), "truth": ("cat",) if wrong else ("cat", "dog"), "n_tokens": 5}
    made |= {"seconds": 0.1, "kv_bytes": 1, "tokens": [1, 2, 3, 4, 5], "ends": ends, "t_vhd": [1.0, 9.0, 2.0, 1.5, 5.0]}
    made |= {"probability": [0.5] * 5}
    return CaptionRecord(image_id=image_id, method=method, caption=text, **(made | more))


RECORDS = [
    caption(0, "greedy", True),
    caption(1, "greedy", False),
    caption(2, "greedy", True, NASTY),
    caption(0, "<b>vhr</b>", False, t_vhd=None, probability=None),
    caption(1, "<b>vhr</b>", True, t_vhd=None, probability=None),
    caption(2, "<b>vhr</b>", True, t_vhd=None, probability=None),
]


def a_look(n_tokens: int = 5, top: int = 3, side: int = 6) -> Look:
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(side * side, 0.3), (n_tokens, top)).reshape(n_tokens, top, side, side)
    heads = rng.integers(0, 8, (n_tokens, top, 2))
    numbers = rng.random((3, n_tokens, top))
    return Look(heads, 30 * numbers[0], maps.sum((2, 3)), maps, 100 * numbers[1, :, 0], numbers[2, :, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of a study by hand: two methods, three images, a caption with HTML in it, the committed study's summary."""
    out = tmp_path_factory.mktemp("run")
    manifest = {"experiment": "study", "model": "<i>m</i>", "data": "testbed:broken", "split": None, "top_k": 1}
    manifest |= {"prompt": "<u>?</u>", "image_ids": [0, 1, 2], "methods": {"<b>vhr</b>": "VHR()"}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "captions.jsonl").write_text("".join(json.dumps(to_json(r)) + "\n" for r in RECORDS))
    for name in ("summary.json", "vhd.png"):
        shutil.copy(ROOT / "figures" / "study" / name, out / name)
    return out


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_what_users_wrote_is_data_and_never_markup(folder):
    report = write_report(ReportConfig(str(folder), look=0))
    page = report.path.read_text(encoding="utf-8")
    assert report.path == folder / "report.html"
    assert "look into N images" in report.note.replace("looks", "look")
    for told in ("owned", "<b>vhr", "<i>m", "<u>?"):
        assert all("\\u003c" in page[: m.start()].rpartition("\n")[2] for m in re.finditer(re.escape(told), page)), told
    assert "&lt;i&gt;m&lt;/i&gt;" in page
    assert data_of(page)["images"][2]["captions"][0]["text"] == NASTY
    assert page.count("<script") == 2
    assert page.count("<img") == 1, "the figure; pictures of captions are made by the script"
    assert not re.search(r"(src|href)=\"?https?:", page)
    assert "46.5 [40.0, 53.0]" in page


def test_the_data_are_the_records(folder):
    data = captions_data(RECORDS, {0: "data:x"}, {(1, "<b>vhr</b>"): a_look()}, 1)
    first, second, third = data["images"]
    assert (data["methods"], data["baseline"]) == (["greedy", "<b>vhr</b>"], "greedy")
    assert first["picture"] == "data:x"
    assert second["picture"] is None
    text, parts = first["captions"][0]["text"], first["captions"][0]["parts"]
    assert [text[a:b] for a, b, _ in parts] == ["A", " cat", " and", " a", " dog."]
    assert [NASTY[a:b] for a, b, i in third["captions"][0]["parts"] if i >= 0] == ["dog"], "only the object's token"
    assert "".join(NASTY[a:b] for a, b, _ in parts_of(RECORDS[2])) == NASTY
    assert "t" not in first["captions"][1]
    assert len(second["captions"][1]["t"]) == 5, "from the look"
    look = second["captions"][1]["look"]
    cells = np.frombuffer(base64.b64decode(look["maps"]), np.uint8).reshape(5, 3, *look["grid"])
    assert (cells.max((2, 3)) == 255).all()
    np.testing.assert_allclose(cells[4, 2] / 255 * look["most"][-1], a_look().maps[4, 2], atol=0.003)  # pyright: ignore[reportOptionalSubscript]


def test_tables_hold_what_the_summary_says():
    summary = json.loads((ROOT / "figures" / "study" / "summary.json").read_text())
    rates, versus, sight, words = study_tables(summary)
    greedy = summary["methods"]["greedy"]
    assert (
        rates.rows[0][1] == f"{greedy['chair_s']:.1f} [{', '.join(f'{x:.1f}' for x in greedy['interval']['chair_s'])}]"
    )
    assert versus.rows[0][0] == "vhr"
    assert versus.rows[0][1].startswith("+")
    assert sight.rows[0][1].startswith(f"{greedy['d_prime']:.2f} [")
    assert words.rows[0] == ["T-VHD", "0.74 [0.71, 0.78]"]


def test_a_look_is_the_model_s_attention_and_vhd(model):
    data = open_data("testbed:broken", "dev", ObjectParser.coco())
    inputs = model.inputs([data.load(i).image for i in data.image_ids[:2]], "Please describe this image in detail.")
    captions = [c[:6] for c in model.generate(inputs, max_new_tokens=6).tokens]
    looks, traces = look_into(model, inputs, captions, 2, 1), token_vhd(model, inputs, captions)
    for look, trace in zip(looks, traces, strict=True):
        best = trace.vhd.flatten(1).max(-1)
        np.testing.assert_allclose(look.vhd[:, 0], best.values.numpy(), rtol=1e-4)
        assert (8 * look.heads[:, 0, 0] + look.heads[:, 0, 1] == best.indices.numpy()).all()
        assert look.maps is not None
        np.testing.assert_allclose(look.maps.sum((2, 3)), look.mass, rtol=1e-3, atol=1e-5)
        assert 0 < look.mass.mean() <= 1
    n = inputs.input_ids.shape[1]
    whole = inputs.extended(captions).kwargs()
    eager = model.hf.config.get_text_config()
    before, eager._attn_implementation = eager._attn_implementation, "eager"
    with torch.no_grad():
        maps = model.hf(**whole, output_attentions=True, use_cache=False).attentions
    eager._attn_implementation = before
    layer, head = looks[1].heads[3, 1]
    image = maps[int(layer)][1, int(head), n - 1 + 3][:n][inputs.image_mask[1]]
    np.testing.assert_allclose(looks[1].mass[3, 1], image.sum().item(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(looks[1].maps[3, 1].ravel(), image.numpy(), atol=1e-5)  # pyright: ignore[reportOptionalSubscript]


def test_fine_grids_are_added_up():
    piece = Piece(np.arange(24 * 24).reshape(24, 24), (0.0, 0.0, 1.0, 1.0))
    attention = np.random.default_rng(0).random(24 * 24)
    small = coarse([piece], attention)
    np.testing.assert_allclose(small, attention.reshape(12, 2, 12, 2).sum((1, 3)))
    tiles = [Piece(np.arange(4).reshape(2, 2) + 4 * i, (i / 2, 0.0, (i + 1) / 2, 1.0)) for i in range(2)]
    np.testing.assert_allclose(coarse(tiles, np.arange(8.0)), [[0, 1, 4, 5], [2, 3, 6, 7]])


@pytest.fixture
def page(browser, folder, tmp_path):
    """The page of the run by hand with a look into image 0, open; it must not complain."""
    data = captions_data(RECORDS, {0: PIXEL}, {(0, m): a_look() for m in ("greedy", "<b>vhr</b>")}, 1)
    path = tmp_path / "page.html"
    path.write_text(rendered("run", {"model": "m"}, [], [("vhd", PIXEL)], data, "note"), encoding="utf-8")
    opened, complaints = browser.new_page(viewport={"width": 1000, "height": 800}), []
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: complaints.append(str(e)))
    opened.goto(path.as_uri())
    yield opened
    assert not complaints
    assert opened.title() == "interp: run", "a caption's script ran"
    opened.close()


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_filters_choose_images(page):
    shown = {}
    for what in ("all", "hallucinated", "fixed", "broken"):
        page.select_option("#show", what)
        page.select_option("#method", "1") if what != "all" else None
        shown[what] = page.locator("article h3:has-text('Image')").all_text_contents()
    assert shown["all"] == ["Image 0", "Image 1", "Image 2"]
    assert shown["hallucinated"] == ["Image 1", "Image 2"]
    assert (shown["fixed"], shown["broken"]) == (["Image 0"], ["Image 1"])
    assert page.text_content("#count") == "1 of 3 images"


def test_captions_are_text_in_the_page(page):
    assert NASTY in page.locator("article").nth(2).locator(".caption").first.text_content()
    assert page.locator("article img[src='x']").count() == 0
    assert page.locator("article h3:has-text('<b>vhr</b>')").count() == 3


def test_a_click_shows_heads_and_where_they_look(page):
    token = page.locator("article .token.wrong").first
    assert token.get_attribute("aria-label") == "dog., dog, hallucinated, T-VHD 5.00"
    token.click()
    detail = page.locator("article").first.locator(".detail")
    look = a_look()
    assert "probability 0.500" in detail.text_content()
    assert f"L{look.heads[4, 0, 0]}H{look.heads[4, 0, 1]}: VHD {look.vhd[4, 0]:.1f}" in detail.text_content()
    dark = "c => [...c.getContext('2d').getImageData(0, 0, 6, 6).data].filter((_, i) => i % 4 === 3)"
    canvas = page.locator("article canvas").first
    first = np.array(canvas.evaluate(dark))
    assert first.argmin() == look.maps[4, 0].argmax()  # pyright: ignore[reportOptionalSubscript]
    detail.locator("button").nth(1).click()
    assert np.array(canvas.evaluate(dark)).argmin() == look.maps[4, 1].argmax()  # pyright: ignore[reportOptionalSubscript]
    page.keyboard.press("Escape")
    assert detail.text_content() == ""


def test_the_keyboard_is_enough(page):
    page.locator("#method").focus()
    page.select_option("#show", "hallucinated")
    page.locator("article .token[tabindex='0']").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("[aria-pressed='true']").first.text_content() == " a"
    assert "“a” in the caption by greedy" in page.locator(".detail").first.text_content()
    assert page.locator(".token[tabindex='0']").count() == page.locator(".caption:has([role=button])").count()


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("article .token.wrong").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_five_hundred_images_with_four_methods_open_at_once(browser, tmp_path):
    look, ends = a_look(45, side=8), list(range(4, 184, 4))
    text, truth = "abc " * 46, ("cat", "dog")
    dog = MentionRecord("dog", "abc", True, 4, 7, 1, 1)
    shared: dict[str, Any] = {"caption": text, "mentions": (dog,), "truth": truth, "n_tokens": 45, "seconds": 0.1}
    shared |= {"kv_bytes": 1, "tokens": [1] * 45, "ends": ends, "t_vhd": [50.1234] * 45, "probability": [0.123456] * 45}
    methods = ("greedy", "vhr", "m3id", "vasparse")
    records = [CaptionRecord(image_id=i, method=m, **shared) for i in range(500) for m in methods]
    picture = "data:image/jpeg;base64," + "A" * 8000
    looks = fitting(((r.image_id, r.method), look) for r in sorted(records, key=lambda r: int(r.image_id)))
    assert 1000 < len(looks) < 2000, "maps of fewer images, so that the rest fits"
    data = captions_data(records, dict.fromkeys(range(500), picture), looks, 1)
    path = tmp_path / "large.html"
    path.write_text(rendered("large", {}, [], [], data, ""), encoding="utf-8")
    assert path.stat().st_size < 30e6
    opened = browser.new_page()
    session = opened.context.new_cdp_session(opened)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time: the machine may be busy
    opened.goto(path.as_uri())
    assert opened.text_content("#count") == "500 of 500 images"
    spent = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 2
    opened.close()


def test_a_run_without_captions_has_its_figures(tmp_path):
    report = write_report(ReportConfig(str(ROOT / "figures" / "attention"), str(tmp_path / "page.html")))
    page = report.path.read_text(encoding="utf-8")
    assert page.count("<figure>") == len(list((ROOT / "figures" / "attention").glob("*.png")))
    assert "No captions in this run: tables and figures only." in page
    assert "<script" not in page
    with pytest.raises(ValueError, match="holds no run"):
        write_report(ReportConfig(str(tmp_path)))
    with pytest.raises(ValueError, match="look is a number of at least 0"):
        ReportConfig("x", look=-1)
