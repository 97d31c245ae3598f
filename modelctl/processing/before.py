"""Raw instances to the tensors that a model takes, by what its manifest declares in `preprocess`.

An instance is what one entry takes: a picture (its bytes, or `{"b64": text}`), a row (an object or a list), a text.
Where there are several entries it is an object: pictures and texts under the names of their inputs, cells under those
of their columns.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from modelctl import chains
from modelctl.errors import ArtifactError, DataError
from modelctl.manifest import TensorSpec

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

MOST_BYTES = 256 << 20  # of all pictures of a request, decoded and as the model takes them
_QUICK_ROWS = 64
_QUICK_PICTURES = 4


class Taken(NamedTuple):
    """Instances that were looked at: how to make them tensors, and whether that takes less than about a millisecond."""

    feeds: Callable[[], Feeds]
    quick: bool


class Before:
    """What is done before a model, by entries that fit its inputs (`fitting`)."""

    def __init__(
        self, entries: Sequence[chains.Preprocess], inputs: Sequence[TensorSpec], tokenizer: bytes | None = None
    ) -> None:
        self.entries = tuple(entries)
        self._inputs = {spec.name: spec for spec in inputs}
        self._tokenizer = tokenizer
        self._tables = [one for one in entries if isinstance(one, chains.Table)]
        self._fields = frozenset(one.input for one in entries if not isinstance(one, chains.Table))
        self._columns = frozenset(column.name for one in self._tables for column in one.columns)

    @cached_property
    def makers(self) -> dict[str, Any]:
        """What makes each input; made when first asked for.

        UnsupportedError for an extra that is missing, ArtifactError for a tokenizer that is, or is none.
        """
        found: dict[str, Any] = {}
        for entry in self.entries:
            if isinstance(entry, chains.Image):
                from modelctl.processing.images import Pictures

                found[entry.input] = Pictures(entry, self._inputs[entry.input])
            elif isinstance(entry, chains.Table):
                from modelctl.processing.tables import Rows

                found[entry.input] = Rows(entry, self._inputs[entry.input])
            else:
                from modelctl.processing.texts import Texts

                if self._tokenizer is None:
                    raise ArtifactError("texts are declared, and there is no tokenizer.json beside the model")
                found[entry.input] = Texts(entry, list(self._inputs.values()), self._tokenizer)
        return found

    @property
    def kinds(self) -> list[str]:
        """The words of what is taken, in order: image, table, text."""
        return [str(one.__struct_config__.tag) for one in self.entries]

    def taken(self, instances: Sequence[Any]) -> Taken:
        """Instances, looked at; DataError tells what is wrong with them, now or when they are made tensors."""
        if not instances:
            raise DataError("there are no instances")
        for one in instances if len(self.entries) > 1 else ():
            self._check_names(one)
        parts = [self._part(entry, instances) for entry in self.entries]

        def feeds() -> Feeds:
            made: Feeds = {}
            for part in parts:
                made |= part.feeds()
            return made

        return Taken(feeds, all(part.quick for part in parts))

    def feeds(self, instances: Sequence[Any], places: Sequence[str] = ()) -> Feeds:
        """Instances as tensors by the input's name; a DataError names the place of the one that is wrong."""
        try:
            return self.taken(instances).feeds()
        except DataError:
            for one, place in zip(instances, places, strict=False):
                try:
                    self.taken([one]).feeds()
                except DataError as error:
                    raise DataError(f"{place}: {error.message}") from error
            raise

    @property
    def columns(self) -> frozenset[str]:
        """The names of the cells of a row, where rows are all that is taken; else none."""
        return self._columns if not self._fields else frozenset()

    @property
    def numbers(self) -> frozenset[str]:
        """The names of the cells that are numbers."""
        return frozenset(one.name for table in self._tables for one in table.columns if isinstance(one, chains.Number))

    def _check_names(self, instance: Any) -> None:
        known = sorted(self._fields | self._columns)
        if not isinstance(instance, Mapping):
            raise DataError(f"an instance is an object here, with {', '.join(known)[:200]}")
        unknown = instance.keys() - self._fields - self._columns
        if unknown:
            raise DataError(f"an instance has {min(map(str, unknown))!r:.60}, it may have {', '.join(known)[:200]}")

    def _part(self, entry: chains.Preprocess, instances: Sequence[Any]) -> Taken:
        maker = self.makers[entry.input]
        if isinstance(entry, chains.Table):
            others = (self._fields | self._columns) - {column.name for column in entry.columns}
            return Taken(lambda: {entry.input: maker.tensor(instances, others)}, len(instances) <= _QUICK_ROWS)
        held = [self._field(entry.input, one) for one in instances]
        if isinstance(entry, chains.Text):
            from modelctl.processing.texts import QUICK_CHARACTERS

            size = sum(len(one) for one in held if isinstance(one, str))
            return Taken(lambda: maker.tensors(held), size <= QUICK_CHARACTERS)
        return _pictures(entry, maker, held)

    def _field(self, name: str, instance: Any) -> Any:
        """What an instance has for an entry that takes one thing."""
        if isinstance(instance, Mapping) and (len(self.entries) > 1 or list(instance) == [name]):
            if name not in instance:
                raise DataError(f"an instance lacks {name!r}")
            return instance[name]
        return instance


def _pictures(entry: chains.Image, maker: Any, held: list[Any]) -> Taken:
    from modelctl.processing import images

    size = entry.height * entry.width * entry.channels * 4
    if size * len(held) > MOST_BYTES:
        raise DataError(f"{len(held)} pictures are more than are read at once")
    ready: list[Any] | None = None
    if len(held) <= _QUICK_PICTURES and size <= images.QUICK_PIXELS * 4 and all(map(_is_short, held)):
        ready = [images.opened(_bytes(one)) for one in held]

    def feeds() -> Feeds:
        rows = [maker.row(one) for one in ready or (images.opened(_bytes(one)) for one in held)]
        return {entry.input: np.stack(rows) if len(rows) > 1 else rows[0][None]}

    return Taken(feeds, ready is not None and all(map(images.is_quick, ready)))


def _is_short(value: Any) -> bool:
    """Whether a picture is so few bytes that its head is read in no time."""
    from modelctl.processing.images import QUICK_BYTES

    inner = value.get("b64") if isinstance(value, Mapping) else value
    return not isinstance(inner, str | bytes) or len(inner) <= (QUICK_BYTES if isinstance(inner, bytes) else 6000)


def _bytes(value: Any) -> bytes:
    """A picture's bytes, also out of `{"b64": text}`, whose text may be a data URL."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    text = value.get("b64") if isinstance(value, Mapping) and len(value) == 1 else None
    if isinstance(text, bytes):  # msgpack
        return text
    if not isinstance(text, str):
        raise DataError('a picture is {"b64": "<base64 of its bytes>"} here')
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("b64 is not base64") from error
