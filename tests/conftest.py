"""Fixtures: the bundled model, a random one of another shape, and scenes."""

import os

import huggingface_hub.constants
import pytest
import torch
from PIL import Image

from interp.models import LVLM, Inputs, load
from interp.testbed.build import build_config, build_model, build_processor
from interp.testbed.draw import draw
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
