"""A direction of the residual stream: a steering vector after a layer, kept in a file, and its random controls."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector that may be added to the residual stream after a layer."""

    layer: int
    vector: Float[Tensor, " d_model"]

    def __post_init__(self) -> None:
        if self.layer < 0 or not torch.isfinite(self.vector).all() or not self.vector.any():
            raise ValueError(f"a direction is a finite vector other than zero after a layer, got layer {self.layer}")

    @property
    def digest(self) -> str:
        """A short name of the layer and the values."""
        return sha256(np.int64(self.layer).tobytes() + self.vector.float().cpu().numpy().tobytes()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"Direction(layer={self.layer}, norm={float(self.vector.norm()):.4g}, digest={self.digest!r})"

    def random(self, seed: int) -> "Direction":
        """A random direction of the same norm after the same layer: the control of this one."""
        drawn = torch.randn(self.vector.shape, generator=torch.Generator().manual_seed(seed))
        return Direction(self.layer, drawn * (self.vector.norm().cpu() / drawn.norm()))

    def write(self, path: Path) -> None:
        """Save it as .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, layer=self.layer, vector=self.vector.float().cpu().numpy())

    @classmethod
    def read(cls, path: Path) -> "Direction":
        """Read what `write` wrote; ValueError if it is anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(int(file["layer"]), torch.from_numpy(file["vector"].astype(np.float32)))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no direction, as interp direction --out FILE writes it: {error}") from error
