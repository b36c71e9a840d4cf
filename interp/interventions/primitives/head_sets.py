"""Sets of heads by name: labels, or a share of all, chosen by a ranking that `interp causal` has written, or drawn.

Labels (`L3H2+L5H0`); `top10%`, `bottom10%` and `random10%` of all heads, `top5` for a number of them, `top` for `share`
of them.  `top` and `bottom` follow one of the maps of a ranking file; `random` draws from a seed.
"""

import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from interp.models import Head

CHOSEN = re.compile(r"(top|bottom|random)(?:(\d+(?:\.\d+)?)(%?))?")


def read_ranking(path: str) -> dict[str, np.ndarray]:
    """The maps `[layer, head]` of a ranking file, and `mean` `[layer, head, d_head]`; as the file is now."""
    file = Path(path)
    if not path or not file.is_file():
        raise ValueError(
            f"expected ranking=FILE, the heads.npz that interp causal --out DIR writes; there is none at {path!r}"
        )
    return _maps_in(path, file.read_bytes())


@lru_cache(maxsize=8)
def _maps_in(path: str, content: bytes) -> dict[str, np.ndarray]:
    wrong = f"{path} is no ranking: expected the heads.npz that interp causal --out DIR writes, maps [layer, head]"
    try:
        found = np.load(BytesIO(content))
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError(f"{wrong}, got a single array")
        with found:
            maps = {name: found[name] for name in found.files}
    except (OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{wrong}, got a file that cannot be read ({type(error).__name__})") from error
    except ValueError as error:
        told = str(error) if str(error).startswith(path) else f"{wrong}, got a file that holds no plain arrays"
        raise ValueError(told) from error
    strange = [name for name, values in maps.items() if values.dtype.kind not in "fiu"]
    if strange or not maps:
        raise ValueError(f"{wrong} of numbers, got {', '.join(strange) or 'an empty file'}")
    return maps


def means_of(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Each head's mean output `[layer, head, d_head]` over the data of a ranking file."""
    maps = read_ranking(path)
    if "mean" not in maps or maps["mean"].shape != shape:
        found = f"of shape {maps['mean'].shape}" if "mean" in maps else "without it"
        raise ValueError(f"expected {path} with a map mean of shape {shape}, as this model has heads; got one {found}")
    return maps["mean"]


def _map(path: str, by: str, shape: tuple[int, int]) -> np.ndarray:
    maps = read_ranking(path)
    known = [name for name, values in maps.items() if values.ndim == 2]
    if by not in known:
        raise ValueError(f"{path} ranks heads by {', '.join(known)}, got by={by!r}")
    if maps[by].shape != shape:
        raise ValueError(f"{path} ranks {maps[by].shape} layers and heads, this model has {shape}")
    if np.isinf(maps[by]).any():
        raise ValueError(f"{path} has infinite values of {by}; expected a ranking of finite numbers")
    if np.isnan(maps[by]).any():
        raise ValueError(f"{path} has no values of {by}: no such words came up; rank the heads on more images")
    return maps[by]


def head_set(
    text: str, shape: tuple[int, int], ranking: str = "", by: str = "vhd", seed: int = 0, share: float = 0.1
) -> tuple[Head, ...]:
    """The heads that a text names or chooses, of a model with `shape` layers and heads; ValueError if it names none.

    The empty text is the empty set.
    """
    n_layers, n_heads = shape
    chosen = CHOSEN.fullmatch(text)
    if chosen is None:
        heads = Head.parse_list(text) if text else ()
        wrong = [str(h) for h in heads if h.layer >= n_layers or h.head >= n_heads]
        if wrong:
            raise ValueError(f"this model has layers 0 to {n_layers - 1} with heads 0 to {n_heads - 1}, got {wrong}")
        return heads
    how, number, percent = chosen[1], float(chosen[2] or 100 * share), chosen[3]
    size = int(number) if chosen[2] and not percent else round(number / 100 * n_layers * n_heads)
    if chosen[2] and not percent and size != number:
        raise ValueError(f"a number of heads is whole, or a share such as {how}{chosen[2]}%; got {text}")
    if not 1 <= size <= n_layers * n_heads:
        raise ValueError(f"this model has {n_layers * n_heads} heads, got {text}: {size} of them")
    if how == "random":
        order = np.random.default_rng(seed).permutation(n_layers * n_heads)
    else:
        values = _map(ranking, by, shape).ravel()
        order = np.argsort(-values if how == "top" else values, kind="stable")
    return tuple(sorted(Head(*divmod(int(i), n_heads)) for i in order[:size]))
