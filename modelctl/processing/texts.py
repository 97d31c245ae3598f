"""Texts to token ids, by the `tokenizer.json` that travels beside the model (`<file>.tokenizer.json`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelctl import chains
from modelctl.errors import ArtifactError, DataError, missing_extra
from modelctl.manifest import TensorSpec

try:
    from tokenizers import Tokenizer
except ImportError as error:
    raise missing_extra("texts are cut into tokens with tokenizers", "text") from error

Array = np.ndarray[Any, Any]
MOST_CHARACTERS = 1 << 22  # of all texts of a request
QUICK_CHARACTERS = 512
MOST_TOKENS = 1 << 22


class Texts:
    """How texts become rows of the inputs of a model that take tokens; ArtifactError if the tokenizer is none."""

    def __init__(self, entry: chains.Text, specs: Sequence[TensorSpec], tokenizer: bytes) -> None:
        self.entry = entry
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(entry.max_length)
        except Exception as error:
            raise ArtifactError(f"the tokenizer.json is not one that is read here: {str(error)[:100]}") from error

    def tensors(self, texts: Sequence[Any]) -> dict[str, Array]:
        """Ids, and where they are asked for mask and types, each [N, length]."""
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"{text!r:.60} is not a text")
        if sum(map(len, texts)) > MOST_CHARACTERS:
            raise DataError(f"the texts have more than {MOST_CHARACTERS} characters")
        entry = self.entry
        try:
            found = self._tokenizer.encode_batch(list(texts)) if len(texts) > 1 else [self._tokenizer.encode(texts[0])]
        except TypeError as error:  # half of a surrogate pair
            raise DataError("a text is not a text of Unicode") from error
        length = entry.max_length if entry.pad == "max" else max(1, *(len(one.ids) for one in found))
        if length * len(found) > MOST_TOKENS:
            raise DataError(f"{len(found)} texts of {length} tokens are more than is read at once")
        ids = np.full((len(found), length), entry.pad_id, np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, one in enumerate(found):
            ids[row, : len(one.ids)] = one.ids
            mask[row, : len(one.ids)] = 1
            types[row, : len(one.ids)] = one.type_ids
        made = {entry.input: ids, entry.mask: mask, entry.types: types}
        return {name: array.astype(self._dtypes[name]) for name, array in made.items() if name is not None}
