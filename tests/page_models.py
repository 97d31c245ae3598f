"""Models for a person to try: one of digits that truly reads them, and others of a table, of texts, of bare tensors."""

from pathlib import Path

import numpy as np
import servers
import words
from onnx import helper

from modelctl.data import digits
from modelctl.options import ExportOptions, OptimizeOptions
from modelctl.steps.export import Source, export
from modelctl.steps.optimize import optimize

TABLE = """
[[preprocess]]
do = "table"
input = "x"

[[preprocess.columns]]
name = "area"
is = "number"
mean = 100.0
std = 50.0

[[preprocess.columns]]
name = "town"
is = "category"
values = ["Aarhus", "<img src='x' onerror='alert(1)'>", "Cork"]
"""


def linear(path: Path) -> Path:
    """Logits of the ten digits, from x[batch,1,8,8] in 0…1: least squares on the digits that modelctl has."""
    with np.load(digits.path()) as found:
        x, y = found["x"].reshape(-1, 64).astype(np.float64), found["y"]
    x = np.hstack([x, np.ones((len(x), 1))])
    weights = np.linalg.solve(x.T @ x + np.eye(65), x.T @ (8.0 * np.eye(10)[y] - 2.0)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "c"], ["logits"]),
    ]
    shapes = [("x", 1, ["batch", 1, 8, 8])], [("logits", 1, ["batch", 10])]
    held = {"flat": np.array([-1, 64]), "w": weights[:64], "c": weights[64:]}
    return servers.save(path, nodes, *shapes, held)


def readable(folder: Path) -> Path:
    """`digits.onnx`: pictures in, the three likeliest digits out; made in two steps."""
    labels = folder / "labels.txt"
    labels.write_text("\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
    source = Source.parse(str(linear(folder / "linear.onnx")))
    options = ExportOptions(preprocess=("image:8x8,gray",), postprocess=(f"softmax,top-k=3,labels={labels}",))
    first = export(source, folder / "exported.onnx", options)
    return optimize(first, folder / "digits.onnx", OptimizeOptions(allow_regression=True)).path


def houses(folder: Path) -> Path:
    """`houses.onnx`: a price from an area and a town."""
    plain = servers.save(
        folder / "plain.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["price"])],
        [("x", 1, ["batch", 4])],
        [("price", 1, ["batch", 1])],
        {"w": np.array([[2.0], [10.0], [20.0], [30.0]], np.float32)},
    )
    declared = folder / "houses.toml"
    declared.write_text(TABLE)
    options = ExportOptions(preprocess=(str(declared),))
    return export(Source.parse(str(plain)), folder / "houses.onnx", options).path


def meanings(folder: Path) -> Path:
    """`meanings.onnx`: a vector of length 1 for a text."""
    told = words.tokenizer(folder / "tokenizer.json", pad_id=0)
    source = Source.parse(str(words.encoder(folder / "net.onnx")))
    options = ExportOptions(preprocess=(f"text:{told},max-length=16",), postprocess=("pool,normalize",), threads=1)
    return export(source, folder / "meanings.onnx", options).path


def zoo(folder: Path) -> list[Path]:
    """Those three, one of digits that declares nothing, and one of several tensors."""
    made = [readable(folder), houses(folder), meanings(folder)]
    return [*made, linear(folder / "bare.onnx"), servers.pair(folder / "pair.onnx")]
