"""Pictures of any kind as a model takes them: upright, in 8-bit RGB, or refused with the reason."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SMALLEST = 4
"""Pixels of a side; processors take a side of 1 or 3 for the colour channels."""


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, in RGB; ValueError if its values have no known scale.

    16-bit grey is divided by 257 (Pillow's own conversion clips it to white), floats are taken to lie in 0 to 1.
    """
    _load(picture)
    if min(picture.size) < SMALLEST:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels; expected at least {SMALLEST} a side")
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):
        return _grey(np.asarray(turned), 65535, "integers", turned.mode)
    if turned.mode == "F":
        return _grey(np.asarray(turned), 1, "floats", turned.mode)
    if turned.mode == "P" and "transparency" in turned.info:
        turned = turned.convert("RGBA")
    return turned.convert("RGB")


def _load(picture: Image.Image) -> None:
    """Read the whole picture: Pillow reads late, and a torn file would come back half grey from the turning."""
    if not isinstance(picture, Image.Image):
        raise ValueError(f"it is a {type(picture).__name__}; PIL.Image.fromarray makes a picture of an array")
    with _decoding():
        picture.load()


@contextmanager
def _decoding() -> Iterator[None]:
    """ValueError with a reader's words for whatever a decoder of strangers' files raises."""
    try:
        yield
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    except Exception as error:  # struct.error, IndexError, ValueError of int(), ...: words of a decoder's code
        raise ValueError(f"its decoder fails with {type(error).__name__}") from error


def _grey(values: np.ndarray, white: int, kind: str, mode: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # NaN is neither
        raise ValueError(
            f"its {kind} (mode {mode}) lie in {low:g} to {high:g}, and where white lies is not known; "
            f"expected 0 to {white}: convert it to 8 bits"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def read_image(path: Path | BytesIO) -> Image.Image:
    """Read an image file, or the bytes of one, whole, upright and in RGB; ValueError if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _decoding():
                image = Image.open(path)
            with image:
                return upright_rgb(image)
    except ValueError as error:
        raise ValueError(f"cannot read the image {path}; replace the file: {error}") from error
