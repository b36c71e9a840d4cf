"""interp: mechanistic interpretability of object hallucination in large vision-language models."""

from interp.interventions import VHR, parse_method
from interp.models import LVLM, UnsupportedModelError, load
from interp.trace import head_outputs, token_vhd, vhd

__all__ = ["LVLM", "VHR", "UnsupportedModelError", "head_outputs", "load", "parse_method", "token_vhd", "vhd"]
