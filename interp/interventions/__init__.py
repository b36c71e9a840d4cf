"""Changing what a model does while it generates."""

from interp.interventions.base import Method, Preset
from interp.interventions.directions import Direction
from interp.interventions.methods.avisc import AvisC
from interp.interventions.methods.deco import DeCo
from interp.interventions.methods.decoding import Beams, Greedy, Sampling, StopBias, TokenBias
from interp.interventions.methods.direction import AddDirection
from interp.interventions.methods.dola import DoLa
from interp.interventions.methods.fastv import FastV
from interp.interventions.methods.h2o import H2O
from interp.interventions.methods.head_edits import EditHeads
from interp.interventions.methods.icd import ICD
from interp.interventions.methods.m3id import M3ID
from interp.interventions.methods.opera import OPERA
from interp.interventions.methods.pai import PAI
from interp.interventions.methods.snapkv import SnapKV
from interp.interventions.methods.spin import SPIN
from interp.interventions.methods.streaming_llm import StreamingLLM
from interp.interventions.methods.top_k import TopK
from interp.interventions.methods.vasparse import VASparse
from interp.interventions.methods.vcd import VCD
from interp.interventions.methods.vhr import VHR, paper_layers
from interp.interventions.primitives.head_scaling import scaled_heads
from interp.interventions.registry import METHODS, describe_methods, parse_method
from interp.models import HeadSelection

__all__ = [
    "H2O",
    "ICD",
    "M3ID",
    "METHODS",
    "OPERA",
    "PAI",
    "SPIN",
    "VCD",
    "VHR",
    "AddDirection",
    "AvisC",
    "Beams",
    "DeCo",
    "Direction",
    "DoLa",
    "EditHeads",
    "FastV",
    "Greedy",
    "HeadSelection",
    "Method",
    "Preset",
    "Sampling",
    "SnapKV",
    "StopBias",
    "StreamingLLM",
    "TokenBias",
    "TopK",
    "VASparse",
    "describe_methods",
    "paper_layers",
    "parse_method",
    "scaled_heads",
]
