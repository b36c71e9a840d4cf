"""Models, loaded, checked and described the same way whatever their family."""

from interp.models.doctor import Check, Diagnosis, diagnose
from interp.models.families import FAMILIES, TEXT, VISION, Family, UnsupportedModelError
from interp.models.generation import (
    GenerateOptions,
    Generation,
    HeadSelection,
    NonFiniteLogitsError,
    Sampled,
    Searched,
)
from interp.models.gradients import Graph, differentiable
from interp.models.image_free import IMAGE_FREE, diffused, image_free, paired
from interp.models.inputs import Inputs
from interp.models.kernels import AttentionCall
from interp.models.loading import known_device, load
from interp.models.lvlm import LVLM
from interp.models.sites import SITES, Head, Heads, head_results, read, run_with_edits
from interp.models.steering import PASSES, Pass, Steered

__all__ = [
    "FAMILIES",
    "IMAGE_FREE",
    "LVLM",
    "PASSES",
    "SITES",
    "TEXT",
    "VISION",
    "AttentionCall",
    "Check",
    "Diagnosis",
    "Family",
    "GenerateOptions",
    "Generation",
    "Graph",
    "Head",
    "HeadSelection",
    "Heads",
    "Inputs",
    "NonFiniteLogitsError",
    "Pass",
    "Sampled",
    "Searched",
    "Steered",
    "UnsupportedModelError",
    "diagnose",
    "differentiable",
    "diffused",
    "head_results",
    "image_free",
    "known_device",
    "load",
    "paired",
    "read",
    "run_with_edits",
]
