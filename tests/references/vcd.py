"""VCD: Leng et al., CVPR 2024, arXiv 2311.16922, eqs. 3 and 4; numbers from DAMO-NLP-SG/VCD.

`vcd_utils/vcd_add_noise.py` @039af55 (the schedule), `vcd_utils/vcd_sample.py` @d6568ff (the contrast).  In the first
release, @039af55, the contrast acts on the first token of a text only: later ones read the clean picture's cache.
"""

import numpy as np

STEPS = 1000
SMALLEST, LARGEST = 1e-5, 0.5e-2


def schedule() -> tuple[np.ndarray, np.ndarray]:
    """How much of the picture is left, and the standard deviation of the noise, after steps 0 to 999 `[1000]`."""
    variance = SMALLEST + (LARGEST - SMALLEST) / (1 + np.exp(-np.linspace(-6, 6, STEPS)))
    left = np.cumprod(1 - variance)
    return np.sqrt(left), np.sqrt(1 - left)


def noised(pixels: np.ndarray, noise: np.ndarray, step: int) -> np.ndarray:
    """The normalised pixels under standard normal `noise` of their shape; `step` counts from 0."""
    signal, deviation = schedule()
    return signal[step] * pixels + deviation[step] * noise


def contrast(theta: np.ndarray, phi: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Logits `[token]` to draw from: minus infinity where theta lies below its maximum plus log beta."""
    mixed = (1 + alpha) * theta - alpha * phi
    return np.where(theta < np.log(beta) + theta.max(), -np.inf, mixed)
