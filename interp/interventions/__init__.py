"""Changing what a model does while it generates."""

from interp.interventions.contrast import M3ID, VCD
from interp.interventions.decoding import Beams, Greedy, Sampling
from interp.interventions.guidance import PAI, DoLa
from interp.interventions.heads import scaled_heads
from interp.interventions.registry import METHODS, Method, describe_methods, parse_method
from interp.interventions.sparse import H2O, FastV, SnapKV, StreamingLLM, TopK
from interp.interventions.vasparse import VASparse
from interp.interventions.vhr import VHR, HeadSelection, paper_layers

__all__ = [
    "H2O",
    "M3ID",
    "METHODS",
    "PAI",
    "VCD",
    "VHR",
    "Beams",
    "DoLa",
    "FastV",
    "Greedy",
    "HeadSelection",
    "Method",
    "Sampling",
    "SnapKV",
    "StreamingLLM",
    "TopK",
    "VASparse",
    "describe_methods",
    "paper_layers",
    "parse_method",
    "scaled_heads",
]
