"""Pictures become the numbers that Pillow and numpy, written out here, say; what is no sound picture is refused."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from modelctl import chains
from modelctl.errors import DataError, UsageError
from modelctl.manifest import TensorSpec
from modelctl.processing.before import Before
from modelctl.processing.images import MOST_PIXELS

CHANCE = np.random.default_rng(0)
GRAY = CHANCE.integers(0, 256, (20, 30), dtype=np.uint8)
COLOR = CHANCE.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def file_of(pixels: Any, kind: str = "PNG", **how: Any) -> bytes:
    picture = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    file = BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def made(data: bytes, dtype: str = "float32", **how: Any) -> Any:
    """The one row that a file becomes."""
    said: dict[str, Any] = {"input": "x", "height": 20, "width": 30, "color": "gray"} | how
    entry = chains.Image(**said)
    return Before([entry], [TensorSpec(name="x", dtype=dtype, shape=("n",))]).feeds([data])["x"][0]


def test_shades_are_as_idx_data_are_scaled() -> None:
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = made(file_of(shades), height=16, width=16)
    np.testing.assert_array_equal(found, (shades.astype(np.float32) / 255)[None])


def test_scale_mean_and_std_are_taken_in_that_order_for_each_channel() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = made(file_of(COLOR), color="rgb", mean=mean, std=std)
    wanted = ((COLOR / 255.0 - mean) / std).transpose(2, 0, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_inverting_comes_before_scaling() -> None:
    found = made(file_of(GRAY), invert=True, mean=(0.5,), std=(0.5,))
    np.testing.assert_allclose(found, ((255.0 - GRAY) / 255 - 0.5)[None] / 0.5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "color", "shape"),
    [
        ("nchw", "rgb", (3, 20, 30)),
        ("nhwc", "rgb", (20, 30, 3)),
        ("flat", "rgb", (1800,)),
        ("nchw", "gray", (1, 20, 30)),
        ("nhwc", "gray", (20, 30, 1)),
        ("nhw", "gray", (20, 30)),
        ("flat", "gray", (600,)),
    ],
)
@pytest.mark.parametrize("means", [1, 3])
def test_layouts(layout: str, color: str, shape: tuple[int, ...], means: int) -> None:
    pixels = COLOR if color == "rgb" else GRAY[..., None]
    mean = (0.1, 0.2, 0.3)[:means] if color == "rgb" and means == 3 else ()
    found = made(file_of(COLOR if color == "rgb" else GRAY), layout=layout, color=color, mean=mean)
    wanted = pixels / 255.0 - (mean or 0.0)
    wanted = wanted.transpose(2, 0, 1) if layout == "nchw" else wanted
    assert found.shape == shape
    np.testing.assert_allclose(found, wanted.reshape(shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int32"])
def test_numbers_are_of_the_inputs_own_type(dtype: str) -> None:
    found = made(file_of(GRAY), dtype, scale=1.0)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0].astype(np.int64), GRAY)


def test_numbers_that_a_type_can_not_hold_are_refused_before_any_picture() -> None:
    with pytest.raises(UsageError, match="x is uint8, which can't hold"):
        made(file_of(GRAY), "uint8")
    with pytest.raises(UsageError, match="can't hold"):
        made(file_of(GRAY), "int8", scale=1.0)


@pytest.mark.parametrize("name", chains.FILTERS)
def test_filters_are_pillows(name: str) -> None:
    found = made(file_of(GRAY), height=9, width=11, filter=name, scale=1.0)
    wanted = Pillow.fromarray(GRAY).resize((11, 9), getattr(Pillow.Resampling, name.upper()))
    np.testing.assert_array_equal(found[0], np.asarray(wanted))


def test_the_middle_is_cut_out_of_what_covers_it() -> None:
    found = made(file_of(GRAY), height=12, width=12, fit="crop", shorter=16, scale=1.0)
    resized = np.asarray(Pillow.fromarray(GRAY).resize((24, 16), Pillow.Resampling.BILINEAR))  # 30·16/20 = 24
    np.testing.assert_array_equal(found[0], resized[2:14, 6:18])
    found = made(file_of(GRAY), height=10, width=10, fit="crop", scale=1.0)
    resized = np.asarray(Pillow.fromarray(GRAY).resize((15, 10), Pillow.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[0], resized[:, 2:12])  # (15 − 10) / 2, rounded to even


def test_a_crop_of_the_right_size_already_is_left_alone() -> None:
    np.testing.assert_array_equal(made(file_of(GRAY), fit="crop", scale=1.0)[0], GRAY)
    found = made(file_of(GRAY), fit="crop", shorter=40, scale=1.0)
    resized = np.asarray(Pillow.fromarray(GRAY).resize((60, 40), Pillow.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[0], resized[10:30, 15:45])


def test_padding_is_around_the_whole_picture() -> None:
    found = made(file_of(GRAY), height=30, width=30, fit="pad", background=7, scale=1.0)
    assert (found[0, :5] == 7).all()
    assert (found[0, 25:] == 7).all()
    np.testing.assert_array_equal(found[0, 5:25], GRAY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_camera_says(orientation: int) -> None:
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
             6: np.rot90(upright), 7: np.rot90(upright.T, 2), 8: np.rot90(upright, -1)}  # fmt: skip
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation])
    for kind, more in (("PNG", {}), ("JPEG", {"quality": 100}), ("WEBP", {"lossless": True})):
        found = made(file_of(stored, kind, exif=exif, **more), height=16, width=24, scale=1.0)
        np.testing.assert_allclose(found[0], upright, atol=3)


def test_what_is_transparent_shows_the_background() -> None:
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[..., :3] = 200
    pixels[:, :15, 3] = 255
    for background in (0, 255):
        found = made(file_of(pixels), background=background, scale=1.0)[0]
        assert (found[:, :15] == 200).all()
        assert (found[:, 15:] == background).all()
    faint = np.full((20, 30, 2), (100, 128), np.uint8)
    assert made(file_of(Pillow.fromarray(faint, "LA")), scale=1.0).max() == round(100 * 128 / 255)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_the_color_that_is_asked_for(mode: str) -> None:
    smooth = np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)
    if mode == "I;16":
        data = file_of(Pillow.fromarray((smooth.astype(np.uint16) << 8) | 17))
    else:
        picture = Pillow.fromarray(smooth).convert("RGB" if mode in ("CMYK", "YCbCr") else "L").convert(mode)
        data = file_of(picture, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    for color in ("gray", "rgb"):
        found = made(data, color=color, scale=1.0)
        assert found.shape[0] == (1 if color == "gray" else 3)
        if mode != "1":
            np.testing.assert_allclose(found[0], smooth, atol=6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_kind_of_file_is_read(kind: str) -> None:
    found = made(file_of(np.full((20, 30), 99, np.uint8), kind), scale=1.0)
    np.testing.assert_allclose(found, 99, atol=2)


def test_of_a_moving_picture_the_first_frame_counts() -> None:
    frames = [Pillow.fromarray(np.full((20, 30), shade, np.uint8)) for shade in (10, 200)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(made(data, scale=1.0), 10, atol=1)


def test_other_kinds_are_refused() -> None:
    for kind in ("TIFF", "PPM", "ICO", "PDF"):
        with pytest.raises(DataError, match="not a picture that is read here"):
            made(file_of(GRAY, kind))


def _png(width: int, height: int, packed: bytes) -> bytes:
    """A PNG file of one bit a pixel that claims its size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (MOST_PIXELS + 1, 1), (9000, 9000)])
def test_a_bomb_is_refused_by_what_it_claims(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="pixels"):
        made(_png(*size, zlib.compress(bytes(1000))))


def test_what_would_be_large_in_between_is_refused() -> None:
    tall = file_of(Pillow.new("1", (1, 1 << 16)))
    for fit in ("stretch", "crop"):
        with pytest.raises(DataError, match="too long for its width"):
            made(tall, height=1000, width=1000, fit=fit)
    assert made(tall, height=1000, width=1000, fit="pad").shape == (1, 1000, 1000)


GOOD = [file_of(GRAY), file_of(COLOR, "JPEG"), file_of(COLOR, "WEBP"), file_of(COLOR, "GIF"), file_of(GRAY, "BMP")]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(GOOD), st.data())
def test_a_damaged_picture_is_read_or_refused(good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = made(bytes(damaged))
    except DataError as error:
        assert "\n" not in error.message
        assert len(error.message) < 200
    else:
        assert found.shape == (1, 20, 30)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF....WEBP", b"BM"]), st.binary())
def test_any_bytes_are_read_or_refused(start: bytes, rest: bytes) -> None:
    with pytest.raises(DataError):
        made(start + rest)
