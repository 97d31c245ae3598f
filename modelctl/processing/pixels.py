"""What the pixels of a picture become: shapes and numbers, for which nothing needs to be decoded."""

from typing import Any

import ml_dtypes
import numpy as np

from modelctl import chains
from modelctl.errors import UsageError
from modelctl.manifest import TensorSpec

Array = np.ndarray[Any, Any]


def row_shape(entry: chains.Image) -> tuple[int, ...]:
    """The shape of one picture as the model takes it, without the first axis."""
    high, wide, channels = entry.height, entry.width, entry.channels
    shapes = {
        "nchw": (channels, high, wide),
        "nhwc": (high, wide, channels),
        "nhw": (high, wide),
        "flat": (high * wide * channels,),
    }
    return shapes[entry.layout]


def values(entry: chains.Image, spec: TensorSpec) -> list[Array]:
    """What each of a pixel's 256 values becomes, for each channel; once if all channels are alike.

    UsageError where the input's type can't hold the numbers.
    """
    shades = np.arange(256, dtype=np.float64)
    scaled = (255 - shades if entry.invert else shades) * entry.scale
    means, stds = entry.mean or (0.0,) * entry.channels, entry.std or (1.0,) * entry.channels
    dtype = np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
    pairs, made = list(zip(means, stds, strict=True)), []
    for mean, std in pairs[:1] if len(set(pairs)) == 1 else pairs:
        numbers = (scaled - mean) / std
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            if (numbers != np.rint(numbers)).any() or numbers.min() < bounds.min or numbers.max() > bounds.max:
                raise UsageError(
                    f"--preprocess image: {spec.name} is {spec.dtype}, which can't hold what pixels become here",
                    "--preprocess image:scale=1",
                )
        made.append(numbers.astype(dtype))
    return made
