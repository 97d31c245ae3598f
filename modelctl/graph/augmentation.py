"""Further views of the same samples: pictures flipped from left to right."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from modelctl.data import Samples
from modelctl.errors import UnsupportedError

Batch = list[torch.Tensor]
# A batch and its rows → the batch as it is shown, and the rows under which its targets are kept (see `losses`).
Augment = Callable[[Batch, torch.Tensor], tuple[Batch, torch.Tensor]]

SHARE = 0.5  # of the samples of a batch


def flips(samples: Samples, name: str) -> Augment:
    """Flips half of each batch, drawn at random; row N + i is picture i of N flipped.

    UnsupportedError unless the model called `name` takes one input of pictures [N, channels, height, width].
    """
    _pictures(samples, name)
    count = len(samples)

    def flip(batch: Batch, rows: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        (pictures,) = batch
        chosen = torch.rand(len(rows)) < SHARE
        shown = torch.where(chosen[:, None, None, None], pictures.flip(3), pictures)
        return [shown], rows + count * chosen

    return flip


def flipped(samples: Samples, name: str) -> Samples:
    """The same samples, each flipped; UnsupportedError as of `flips`."""
    _pictures(samples, name)
    return samples.changed(lambda pictures: np.ascontiguousarray(pictures[..., ::-1]))


def _pictures(samples: Samples, name: str) -> None:
    """Refuse all but one input that holds pictures."""
    shapes: Sequence[tuple[int, ...]] = [one.shape for one in samples.first(1).inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UnsupportedError(f"{name}: only pictures [N, channels, height, width] can be flipped, as the one input")
