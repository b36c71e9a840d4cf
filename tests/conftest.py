"""Fixtures: the bundled model, a random one of another shape, scenes, and a decoder in training."""

import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from PIL import Image

from interp.models import LVLM, Inputs, load
from interp.testbed import decoders
from interp.testbed.build import build_config, build_model, build_processor
from interp.testbed.draw import draw
from interp.testbed.steps import Run
from interp.testbed.world import scene

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other workers have the other cores

PROMPT = "Please describe this image in detail."


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """No test waits for the hub."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@pytest.fixture(scope="session")
def model() -> LVLM:
    """The bundled testbed in float32."""
    torch.manual_seed(0)
    return load("testbed")


@pytest.fixture(scope="session")
def random_model() -> LVLM:
    """A LLaVA of another shape with random weights."""
    torch.manual_seed(0)
    processor = build_processor()
    return LVLM(build_model(build_config(processor, layers=3, heads=4, width=64)), processor, "random")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Four broken test scenes."""
    return [Image.fromarray(draw(scene("broken", "test", i))) for i in range(4)]


@pytest.fixture
def inputs(model: LVLM, pictures: list[Image.Image]) -> Inputs:
    """The pictures with prompts of different lengths, so that rows are padded."""
    return model.inputs(pictures, [PROMPT, "Is there a fork in the image?", PROMPT, "Describe this image."])


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A decoder of one layer after four steps on a few words, with the weights after each step beside its folder."""
    out = tmp_path_factory.mktemp("decoder")
    recipe = decoders.DecoderRecipe(layers=1, heads=2, width=16, steps=4, batch=2, warmup=1, vocabulary=300, length=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "python_documentation", lambda: "A cat sat on the mat. " * 6000)
        decoders.train_decoder(out, "tiny", recipe, Run(compile=False))
    return out / "tiny"


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that is installed; playwright downloads none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    programs = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next((found for found in programs if found), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
