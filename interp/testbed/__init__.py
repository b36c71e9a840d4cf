"""The bundled testbed: a drawn world with known truth and a small model that was trained on it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The folder that holds the bundled models, one folder each."""
