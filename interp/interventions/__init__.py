"""Changing what a model does while it generates."""

from interp.interventions.contrast import M3ID, VCD
from interp.interventions.decoding import Beams, Greedy, Sampling
from interp.interventions.edits import EditHeads
from interp.interventions.guidance import PAI, SPIN, DoLa
from interp.interventions.heads import head_directions, scaled_heads
from interp.interventions.opera import OPERA
from interp.interventions.registry import METHODS, Method, describe_methods, parse_method
from interp.interventions.sparse import H2O, FastV, SnapKV, StreamingLLM, TopK
from interp.interventions.vasparse import VASparse
from interp.interventions.vhr import VHR, HeadSelection, alignment, paper_layers

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
    "head_directions",
    "paper_layers",
    "parse_method",
    "scaled_heads",
]
