"""Pictures to tensors: PNG, JPEG, WebP, GIF (its first frame) and BMP, decoded by Pillow within limits.

A picture may have `MOST_PIXELS`, and no step on its way more than that; large ones are decoded one at a time. So what
is held is half a gigabyte at most, whatever a file of few bytes claims to be.
"""

import struct
import threading
import warnings
import zlib
from contextlib import nullcontext
from io import BytesIO
from typing import Any

import numpy as np

from modelctl import chains
from modelctl.errors import DataError, missing_extra
from modelctl.manifest import TensorSpec
from modelctl.processing import pixels

try:
    from PIL import BmpImagePlugin, GifImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
    from PIL import Image as Pillow
except ImportError as error:
    raise missing_extra("pictures are decoded with Pillow", "images") from error

Array = np.ndarray[Any, Any]
Picture = Pillow.Image

FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
    )
    if plugin.format
)
MOST_PIXELS = 1 << 25
LARGE_PIXELS = 1 << 22
QUICK_BYTES = 4096  # what is no longer, and has no more pixels, takes far less than a millisecond
QUICK_PIXELS = 1 << 14
_ONE_AT_A_TIME = threading.Lock()
_TURNED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # of `info`: where an orientation may stand
_FILTERS: dict[str, Pillow.Resampling] = {name: Pillow.Resampling[name.upper()] for name in chains.FILTERS}
# What Pillow raises on bytes that are no sound picture.
_UNSOUND = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError),
    *(ZeroDivisionError, NotImplementedError, AssertionError, MemoryError, struct.error, zlib.error),
    *(Pillow.DecompressionBombError, Pillow.DecompressionBombWarning, RuntimeError),
)

# Pillow refuses at once what has twice as many, and would only warn of what has more.
Pillow.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\b")  # what it has against a picture is nothing for a server's stderr
warnings.simplefilter("error", Pillow.DecompressionBombWarning)


def opened(data: bytes) -> Picture:
    """The picture in `data`, of which no more than its head is read; DataError if it is none, or too large."""
    try:
        picture = Pillow.open(BytesIO(data), formats=FORMATS)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise DataError(f"the picture has more than {MOST_PIXELS} pixels") from error
    except _UNSOUND as error:
        raise DataError(f"not a picture that is read here ({', '.join(FORMATS)})") from error
    if picture.width * picture.height > MOST_PIXELS or 0 in picture.size:
        raise DataError(f"the picture has {picture.width}×{picture.height} pixels, at most {MOST_PIXELS} are read")
    return picture


def is_quick(picture: Picture) -> bool:
    """Whether it is decoded and fitted within a moment."""
    return picture.width * picture.height <= QUICK_PIXELS


class Pictures:
    """How pictures become rows of one input of a model; UsageError where its type can't hold the numbers."""

    def __init__(self, entry: chains.Image, spec: TensorSpec) -> None:
        self.entry = entry
        self._values = pixels.values(entry, spec)
        self._shape = pixels.row_shape(entry)

    def row(self, picture: Picture) -> Array:
        """One picture as the model takes it, without the first axis; DataError if it is not sound."""
        entry = self.entry
        is_large = picture.width * picture.height > LARGE_PIXELS
        try:
            with _ONE_AT_A_TIME if is_large else nullcontext():
                shades = np.asarray(self._fitted(_turned(picture)))
        except DataError:
            raise
        except _UNSOUND as error:
            raise DataError(f"the {picture.format} picture is not sound: {_told(error)}") from error
        if len(self._values) == 1:
            row = np.take(self._values[0], shades)
            return _channels_first(row) if entry.layout == "nchw" else row.reshape(self._shape)
        planes = [np.take(values, shades[..., channel]) for channel, values in enumerate(self._values)]
        return np.stack(planes, axis=0 if entry.layout == "nchw" else -1).reshape(self._shape)

    def _fitted(self, picture: Picture) -> Picture:
        """In the right colours and of the right size."""
        entry = self.entry
        picture = _colored(picture, "L" if entry.color == "gray" else "RGB", entry.background)
        wanted = (entry.width, entry.height)
        if picture.size == wanted and (entry.fit != "crop" or entry.shorter in (None, min(wanted))):
            return picture
        if entry.fit == "stretch":
            return _resized(picture, wanted, entry.filter)
        if entry.fit == "pad":
            scale = min(entry.width / picture.width, entry.height / picture.height)
            inside = _resized(picture, _scaled(picture, scale), entry.filter)
            whole = Pillow.new(inside.mode, wanted, _color(inside.mode, entry.background))
            whole.paste(inside, ((entry.width - inside.width) // 2, (entry.height - inside.height) // 2))
            return whole
        covering = max(entry.width / picture.width, entry.height / picture.height)
        scale = max(covering, (entry.shorter or 0) / min(picture.size))
        found = _resized(picture, _scaled(picture, scale, wanted), entry.filter)
        left, top = round((found.width - entry.width) / 2), round((found.height - entry.height) / 2)
        return found.crop((left, top, left + entry.width, top + entry.height))


def _channels_first(row: Array) -> Array:
    if row.ndim == 2:
        return row[None]
    return np.ascontiguousarray(row.transpose(2, 0, 1))


def _turned(picture: Picture) -> Picture:
    """Decoded, and upright."""
    picture.load()
    return ImageOps.exif_transpose(picture) if any(key in picture.info for key in _TURNED) else picture


def _colored(picture: Picture, mode: str, background: int) -> Picture:
    """In that mode, what is transparent over the background; 16 bits of gray are cut to 8."""
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        shades = np.asarray(picture)
        picture = Pillow.fromarray((np.clip(shades, 0, 65535) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        below = Pillow.new("RGBA", picture.size, (background, background, background, 255))
        picture = Pillow.alpha_composite(below, picture if picture.mode == "RGBA" else picture.convert("RGBA"))
    return picture if picture.mode == mode else picture.convert(mode)


def _color(mode: str, shade: int) -> int | tuple[int, ...]:
    return shade if mode == "L" else (shade, shade, shade)


def _scaled(picture: Picture, scale: float, least: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Width and height times `scale`, cut to whole pixels, as torchvision's `Resize` does."""
    near = 1e-9  # a side that should come out whole does
    return max(least[0], int(picture.width * scale + near)), max(least[1], int(picture.height * scale + near))


def _resized(picture: Picture, size: tuple[int, int], name: str) -> Picture:
    if picture.size == size:
        return picture
    if max(size[0] * size[1], size[0] * picture.height) > MOST_PIXELS:  # Pillow goes through the second in between
        raise DataError(f"a picture of {picture.width}×{picture.height} pixels is too long for its width")
    return picture.resize(size, _FILTERS[name])


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
