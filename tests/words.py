"""A model of words, small enough to be made on the spot: a tokenizer, and a net that takes what it gives."""

from pathlib import Path
from typing import Any

import numpy as np
import servers
from onnx import helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "day", "night", "a", "very")


def tokenizer(path: Path, **padding: int) -> Path:
    """Lower-cased words between [CLS] and [SEP]."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if padding:
        made.enable_padding(**padding)
    made.save(str(path))
    return path


def ids_of(text: str, longest: int = 512) -> list[int]:
    """What the tokenizer makes of words that are letters only, written out."""
    known = {word: place for place, word in enumerate(VOCABULARY)}
    return [2, *[known.get(word, 1) for word in text.lower().split()][: longest - 2], 3]


def table() -> np.ndarray[Any, Any]:
    """The vector of each word [words, 4]."""
    return np.random.default_rng(3).standard_normal((len(VOCABULARY), 4)).astype(np.float32)


def encoder(path: Path, tokens: int | str = "tokens") -> Path:
    """hidden[batch,tokens,4]: the vector of each of input_ids, of those that attention_mask has 1 for."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=1),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["hidden"]),
    ]
    shape: list[int | str] = ["batch", tokens]
    inputs = [("input_ids", 7, shape), ("attention_mask", 7, shape)]
    weights = {"table": table(), "last": np.array([2])}
    return servers.save(path, nodes, inputs, [("hidden", 1, [*shape, 4])], weights)
