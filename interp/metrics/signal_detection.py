"""Signal detection: how well naming tells present objects from absent ones (d'), and how freely it names (criterion).

Green and Swets, "Signal Detection Theory and Psychophysics", 1966; the log-linear correction: Hautus, Behavior Research
Methods 27, 1995.  With H the share of present objects that are named and F that of absent ones,
d' = z(H) - z(F) and c = -(z(H) + z(F)) / 2.  A reader who only names less moves c; one who sees better raises d'.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri


def sensitivity(counts: Float[np.ndarray, "*resample 4"]) -> dict[str, Float[np.ndarray, "*resample"]]:
    """`d_prime` (0: names present and absent alike) and `criterion` (above 0: names sparingly).

    The four counts are present objects that were named, all present ones, absent ones that were named, all absent ones.
    Half a count is added to the named and half to the unnamed of each kind (log-linear), so that rates of 0 and 1 have
    a z.  nan where there are no present, or no absent, objects.
    """
    named, asked = counts[..., [0, 2]], counts[..., [1, 3]]
    z = np.where(asked > 0, ndtri((named + 0.5) / (asked + 1)), np.nan)
    present, absent = np.moveaxis(z, -1, 0)
    return {"d_prime": np.asarray(present - absent), "criterion": np.asarray(-(present + absent) / 2)}
