"""Reading one pass: VHD and T-VHD, attention statistics, sinks."""

from interp.trace.attention import AttentionStatistics, attention_statistics, token_kinds
from interp.trace.divergence import TokenTrace, streams, token_vhd, vhd

__all__ = [
    "AttentionStatistics",
    "TokenTrace",
    "attention_statistics",
    "streams",
    "token_kinds",
    "token_vhd",
    "vhd",
]
