"""Samples that a function of the user's project gives, `module:function`, found in the current folder first.

It is called without arguments and gives batches, one after another: mappings of arrays by input name, with labels `y`;
or pairs (x, y); or x alone; or one such batch in place of many. What NumPy can take for an array is one: lists, tensors
of torch. As the batches stream by they are laid out in temporary files, so that any pass can be taken again.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from modelctl import factory
from modelctl.data.npz import ONLY
from modelctl.data.samples import LABELS, Array, Samples, check_lengths
from modelctl.data.spool import Gathering
from modelctl.errors import DataError

LIMIT_BYTES = 8 << 30  # of a stream that nobody limits


def read(
    reference: str, names: Sequence[str], columns: Sequence[str] = (), limit: int | None = None
) -> tuple[Samples, str]:
    """What the function gives, no more than `limit` samples of it, and the digest of that; DataError if it fits not.

    `names` are those of the model's inputs. UsageError when there is no such function; DataError when it raises.
    """
    found, _ = factory.load(reference)
    gathering = Gathering(reference, names, columns, LIMIT_BYTES if limit is None else None)
    given = _batches(found, reference)
    for place, one in enumerate(given, 1):
        batch = _batch(one, names, columns, f"{reference}: batch {place}")
        left = None if limit is None else limit - gathering.count
        gathering.add({name: array[:left] for name, array in batch.items()})
        if gathering.count == limit:
            break
    given.close()
    return gathering.samples(), gathering.digest()


def _batches(found: Any, reference: str) -> Generator[Any, None, None]:
    """What the function gives, batch by batch; whatever it raises is told with its place."""
    with factory.AuthorsCode(reference, DataError):
        made = found()
        if isinstance(made, Mapping) or _is_array(made) or (isinstance(made, tuple) and all(map(_is_array, made))):
            made = [made]
        if not isinstance(made, Iterable) or isinstance(made, str | bytes):
            raise DataError(f"{reference}: gave {type(made).__name__}, and batches are arrays by name, or pairs (x, y)")
        given = iter(made)
    end = object()
    while True:
        with factory.AuthorsCode(reference, DataError):
            one = next(given, end)
        if one is end:
            return
        yield one


def _is_array(one: Any) -> bool:
    return hasattr(one, "__array__")


def _batch(given: Any, names: Sequence[str], columns: Sequence[str], where: str) -> dict[str, Array]:
    """A batch as arrays by the names of the model's inputs, `y` and columns among them."""
    told: dict[str, Any]
    if isinstance(given, Mapping):
        told = dict(given)
    elif isinstance(given, tuple | list) and len(given) == 2 and not np.isscalar(given[0]):
        told = {**(given[0] if isinstance(given[0], Mapping) else {ONLY: given[0]}), LABELS: given[1]}
    elif _is_array(given):
        told = {ONLY: given}
    else:
        raise DataError(f"{where}: is {type(given).__name__}, and a batch is arrays by name, or a pair (x, y)")
    if len(names) == 1 and names[0] not in told and ONLY in told:
        told[names[0]] = told.pop(ONLY)
    missing = [name for name in (*names, *columns) if name not in told]
    if missing:
        held = ", ".join(sorted(map(str, told))[:8]) or "nothing"
        raise DataError(f"{where}: expected an array {missing[0]!r}, found {held}")
    wanted = dict.fromkeys(chain(names, columns, [LABELS] if told.get(LABELS) is not None else []))
    batch = {name: _array(told[name], f"{where}: {name!r}") for name in wanted}
    check_lengths({name: array.shape for name, array in batch.items()}, where)
    return batch


def _array(given: Any, what: str) -> Array:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths; a tensor that needs a gradient
        raise DataError(f"{what}: is no array: {factory.told(error)}") from error
    if array.dtype.hasobject or array.dtype.names or array.dtype.itemsize == 0:
        raise DataError(f"{what}: holds {array.dtype}, and only plain numbers are read")
    return array
