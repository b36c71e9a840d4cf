"""Pictures of every kind: 16-bit grey and floats keep their scale, EXIF turns, broken files fail by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interp.models.inputs import read_pictures
from interp.pictures import read_image, upright_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_grey_keeps_its_scale(kind, tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"grey.{kind}")
    assert np.array_equal(np.asarray(read_image(tmp_path / f"grey.{kind}"))[..., 0], RAMP)


def test_floats_are_scaled_or_refused(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(RAMP.astype(np.float32) / 255).save(path)
    assert np.array_equal(np.asarray(read_image(path))[..., 1], RAMP)
    for values, shown in ((RAMP.astype(np.float32), "0 to 255"), (np.full((8, 8), np.nan, np.float32), "nan to nan")):
        Image.fromarray(values).save(path)
        with pytest.raises(ValueError, match=f"float.tif; replace the file: its floats .* lie in {shown}"):
            read_image(path)
    Image.fromarray(RAMP.astype(np.int32) * 100_000).save(path)
    with pytest.raises(ValueError, match=r"its integers .* convert it to 8 bits"):
        read_image(path)


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (20, 10), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    seen = read_image(tmp_path / "turned.png")
    assert seen.size == (10, 20)
    assert seen.getpixel((9, 0)) == (255, 255, 255)
    (again,) = read_pictures(Image.open(tmp_path / "turned.png"), 0)
    assert again.size == (10, 20)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def bomb(tmp_path) -> Path:
    """A PNG of a few bytes that says it has 900 million pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    return path


def test_a_decompression_bomb_is_that_pictures_failure(bomb):
    with pytest.raises(ValueError, match=r"cannot read the image .*bomb.png; replace the file: Image size .* exceeds"):
        read_image(bomb)


def test_every_mutated_picture_is_read_or_named(tmp_path):
    """Any exception but a ValueError with the file's name fails."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.dstack([RAMP] * 3))
    for kind in ("png", "gif", "bmp", "tiff", "ppm", "tga", "dds", "ico", "sgi", "pcx", "jpeg"):
        path = tmp_path / f"picture.{kind}"
        picture.save(path)
        whole = path.read_bytes()
        for _ in range(25):
            cut = bytearray(whole)
            for at in rng.integers(0, min(len(cut), 200), 4):
                cut[at] = rng.integers(0, 256)
            path.write_bytes(cut)
            try:
                mode = read_image(path).mode
            except ValueError as error:
                mode = "RGB" if f"cannot read the image {path}" in str(error) and "literal" not in str(error) else error
            assert mode == "RGB"


def test_pictures_too_small_to_tell_from_colours_are_refused():
    for size in ((3, 40), (40, 1), (2, 2)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels; expected at least 4"):
            upright_rgb(Image.new("RGB", size))
    with pytest.raises(ValueError, match="cannot read a picture of row 3"):
        read_pictures([Image.new("RGB", (1, 1))], 3)
