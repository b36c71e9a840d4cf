"""Changing what a model does while it generates."""

from interp.interventions.methods.contrast import M3ID, VCD
from interp.interventions.methods.decoding import Beams, Greedy, Sampling
from interp.interventions.methods.edits import EditHeads
from interp.interventions.methods.guidance import PAI, SPIN, DoLa
from interp.interventions.methods.opera import OPERA
from interp.interventions.methods.sparse import H2O, FastV, SnapKV, StreamingLLM, TopK
from interp.interventions.methods.vasparse import VASparse
from interp.interventions.methods.vhr import VHR, HeadSelection, alignment, paper_layers
from interp.interventions.primitives.head_scaling import scaled_heads
from interp.interventions.registry import METHODS, Method, describe_methods, parse_method

__all__ = [
    "H2O",
    "M3ID",
    "METHODS",
    "OPERA",
    "PAI",
    "SPIN",
    "VCD",
    "VHR",
    "Beams",
    "DoLa",
    "EditHeads",
    "FastV",
    "Greedy",
    "HeadSelection",
    "Method",
    "Sampling",
    "SnapKV",
    "StreamingLLM",
    "TopK",
    "VASparse",
    "alignment",
    "describe_methods",
    "paper_layers",
    "parse_method",
    "scaled_heads",
]
