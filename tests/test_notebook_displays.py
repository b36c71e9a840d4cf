"""What shows itself in a notebook: numbers and marks in the HTML, escaped, and a picture where no script may run."""

import base64
import json
import re

import numpy as np
import pytest

from interp.data import open_data
from interp.evaluate.objects import ObjectParser
from interp.views.caption import CaptionView, caption_view
from interp.views.head_map import HeadMap
from interp.views.heads import HeadsConfig, HeadsReport
from interp.views.markup import shade
from interp.views.steps import OverlaySteps, overlay_steps

PROMPT = "Please describe this image in detail."
NASTY = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def seen(model):
    """A dev scene with its inputs and caption."""
    sample = open_data("testbed:broken", "dev", ObjectParser.coco()).load(2)
    inputs = model.inputs([sample.image], PROMPT)
    return sample, inputs, model.generate(inputs, max_new_tokens=24).tokens[0]


def data_of(html: str) -> dict:
    found = re.search(r"const data = (\{.*\});\n", html)
    assert found
    return json.loads(found[1])


def static_of(html: str) -> bytes:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert found
    return base64.b64decode(found[1])


def test_a_caption_marks_its_objects(model, seen):
    sample, inputs, ids = seen
    view = caption_view(model, inputs, ids, truth={"cat"})
    assert str(view) == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    named = ObjectParser.coco().objects([str(view)])
    assert {o for o in view.objects if o} == named
    assert all(flag is (o != "cat") for o, flag in zip(view.objects, view.hallucinated, strict=True) if o)
    html = view._repr_html_()
    assert html.count('<span style="background') >= len(ids)
    assert f"T-VHD {view.t_vhd[3]:.1f}, probability {view.probability[3]:.3f}" in html
    assert "hallucinated ✗" in html
    assert "<script" not in html
    unmarked = caption_view(model, inputs, ids)
    assert "hallucinated" not in unmarked._repr_html_()
    with pytest.raises(ValueError, match="batch of one"):
        caption_view(model, model.inputs([sample.image] * 2, PROMPT), ids)


def test_what_a_caption_says_is_no_markup():
    view = CaptionView(("A ", NASTY), (1.0, 2.0), (0.5, 0.5), (None, NASTY), (None, True), 1)
    html = view._repr_html_() + HeadMap(np.ones((2, 2)), NASTY, NASTY)._repr_html_()
    assert NASTY not in html
    assert "&lt;script&gt;document" in html


def test_a_head_map_holds_its_numbers_and_a_picture():
    values = np.array([[1.5, np.nan], [-2.0, 0.25]])
    html = HeadMap(values, "nats", "effects", signed=True)._repr_html_()
    data = data_of(html)
    assert data["values"] == [[1.5, None], [-2.0, 0.25]]
    assert data["colours"][0][1] == "#999999"
    red, blue = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (data["colours"][0][0], data["colours"][1][0]))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert static_of(html).startswith(b"\x89PNG")
    assert html == HeadMap(values, "nats", "effects", signed=True)._repr_html_(), "the same numbers, the same output"


def test_heads_of_a_picture_show_map_and_caption():
    report = HeadsReport(HeadsConfig("m", "i", "p", top_k=1), np.eye(2), "A cat", ("A", " cat"), (1.0, 2.0), (0.5, 0.6))
    html = report._repr_html_()
    assert "layer ${l}, head ${h}" in html
    assert "probability 0.600" in html


def test_steps_are_the_attention_of_each_token(model, seen):
    _, inputs, ids = seen
    steps = overlay_steps(model, inputs, ids, "L5H7")
    assert steps.maps.shape == (len(ids), 8, 8)
    np.testing.assert_allclose(steps.maps.sum((1, 2)), steps.mass)
    data = data_of(steps._repr_html_())
    cells = np.frombuffer(base64.b64decode(data["maps"]), np.uint8).reshape(steps.maps.shape)
    assert (cells.max((1, 2)) == 255).all()
    assert (cells.reshape(len(ids), -1).argmax(-1) == steps.maps.reshape(len(ids), -1).argmax(-1)).all()
    assert data["heads"] == "L5H7"
    both = overlay_steps(model, inputs, ids, "L5H7,L4H0").maps
    np.testing.assert_allclose(both, (steps.maps + overlay_steps(model, inputs, ids, "L4H0").maps) / 2, atol=1e-6)


def test_shades_darken():
    assert shade(0, 0, 1) == "rgb(255,255,255)"
    assert shade(9, 0, 1) == shade(1, 0, 1) == "rgb(104,165,217)"
    assert shade(3, 3, 3) == "rgb(255,255,255)"


def test_scripts_work_in_a_browser(browser, tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.random((3, 4, 4)) / 16
    from_pil = open_data("testbed:broken", "dev", ObjectParser.coco()).load(0).image
    steps = OverlaySteps(from_pil, ("A", " cat", NASTY), maps, maps.sum((1, 2)), "L1H2")
    heat = HeadMap(np.array([[1.5, 2.0], [3.0, 4.0]]), "VHD", "heads")
    path = tmp_path / "page.html"
    path.write_text(
        f"<title>t</title><meta charset=utf-8>{heat._repr_html_()}{heat._repr_html_()}{steps._repr_html_()}"
    )
    page, complaints = browser.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(path.as_uri())
    assert page.locator("svg").count() == 2
    page.locator("svg").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.locator("[role=status]").first.text_content() == "layer 1, head 0: VHD 3"
    page.locator("svg").nth(1).locator("rect").nth(1).hover()
    assert page.locator("[role=status]").nth(1).text_content() == "layer 0, head 1: VHD 2"
    slider, told = page.locator("input[type=range]"), page.locator("[role=status]").nth(2)
    slider.fill("1")
    mass, most = f"{100 * maps[1].sum():.0f} % of the attention", f"at most {100 * maps[1].max():.1f} % in a cell"
    assert told.text_content() == f"“cat”, L1H2: {mass} is on the picture, {most}"
    dark = "c => [...c.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 3)"
    assert np.argmin(page.locator("canvas").evaluate(dark)) == maps[1].argmax()
    assert page.title() == "t"
    assert not complaints
    page.close()
