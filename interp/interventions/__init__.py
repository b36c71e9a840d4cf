"""Changing what a model does while it generates."""

from interp.interventions.heads import scaled_heads
from interp.interventions.registry import METHODS, Greedy, Method, parse_method
from interp.interventions.vhr import VHR, HeadSelection, paper_layers

__all__ = ["METHODS", "VHR", "Greedy", "HeadSelection", "Method", "paper_layers", "parse_method", "scaled_heads"]
