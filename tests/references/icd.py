"""ICD: Wang et al., Findings of ACL 2024, arXiv 2403.18715; p1k0pan/ICD `icd_utils/icd_sample.py` @91ed22f.

`phi` are the logits under a disturbing instruction: for LLaVA in place of the system message, the question staying; for
InstructBLIP in the Q-Former only.
"""

import numpy as np

DISTURBANCES = (
    "You are an object detector to recognize every different objects.",
    "You are an object detector to recognize every different objects by focusing the shapes, colors and relationships "
    "of objects.",
    "I want you avoid any specific identification or categorization of the objects depicted.",
    "You are a confused objects detector to provide a fuzzy overview or impression of the image.",
    "You are an object detector to provide a general overview or impression of the image.",
)


def released(theta: np.ndarray, phi: np.ndarray, alpha: float = 1.0, beta: float = 0.1) -> np.ndarray:
    """Logits `[token]` to draw from, as the released code has them: VCD's formula."""
    kept = theta >= theta.max() + np.log(beta)
    return np.where(kept, theta + alpha * (theta - phi), -np.inf)


def with_picture(theta: np.ndarray, phi: np.ndarray, picture: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Together with VCD, whose logits are `picture`: the two contrasts are added."""
    return released(theta, phi, alpha, beta) + released(theta, picture, alpha, beta)
