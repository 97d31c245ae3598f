"""Tiny models that were really trained, by ridge regression on what a fixed net sees, and samples to go with them."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
Array = np.ndarray[Any, Any]


def samples(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Noisy pictures of four patterns: float32 [count, 1, 8, 8] and their classes int64 [count]."""
    patterns = np.random.default_rng(1).random((CLASSES, 1, 8, 8))
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    pictures = patterns[labels] + 0.5 * random.standard_normal((count, 1, 8, 8))
    return pictures.astype(np.float32), labels.astype(np.int64)


def save_npz(path: Path, count: int = 1000, **arrays: Array) -> Path:
    """An `.npz` of samples, `x` and `y` unless others are given."""
    pictures, labels = samples(count)
    held: dict[str, Any] = {**(arrays or {"x": pictures, "y": labels})}
    np.savez(path, **held)
    return path


def idx_bytes(array: Array) -> bytes:
    """An array of bytes as an IDX file holds it."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, train: int = 30, test: int = 10, packed: bool = True) -> Path:
    """A folder in the layout of MNIST; pixel (0, 0) of an image is its number, its label is that modulo 4."""
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.zeros((count, 8, 8), np.uint8)
        images[:, 0, 0] = np.arange(count)
        files = {"images-idx3-ubyte": images, "labels-idx1-ubyte": (np.arange(count) % 4).astype(np.uint8)}
        for name, array in files.items():
            data = idx_bytes(array)
            (folder / f"{prefix}-{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(data) if packed else data)
    return folder


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    shape: list[int | str],
    out_shape: list[int | str],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from `x` to `logits`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolutional(batch: int | str = "batch") -> onnx.ModelProto:
    """conv 8, batch norm, conv 64, dense 4, trained to about 95 %; large enough for int8 to save space."""
    random = np.random.default_rng(2)
    weights = {
        "w1": 0.4 * random.standard_normal((8, 1, 3, 3)),
        "b1": 0.1 * random.standard_normal(8),
        "scale": 1 + 0.2 * random.random(8),
        "shift": 0.1 * random.standard_normal(8),
        "mean": 0.1 * random.standard_normal(8),
        "var": 1 + random.random(8),
        "w2": 0.15 * random.standard_normal((64, 8, 3, 3)),
        "b2": 0.1 * random.standard_normal(64),
        "w3": np.zeros((CLASSES, 256)),
        "b3": np.zeros(CLASSES),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], "norm1"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", **pool),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool2", **pool),
        helper.make_node("Flatten", ["p2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "dense", transB=1),
    ]
    pictures, labels = samples(2000, seed=3)
    untrained = model_of(
        [*nodes[:-1], helper.make_node("Identity", ["f"], ["logits"])], weights, ["n", 1, 8, 8], ["n", 256]
    )
    seen = ort.InferenceSession(untrained.SerializeToString()).run(None, {"x": pictures})[0]
    weights["w3"], weights["b3"] = _ridge(np.asarray(seen), labels)
    return model_of(nodes, weights, [batch, 1, 8, 8], [batch, CLASSES])


def linear(opset: int = 17) -> onnx.ModelProto:
    """Flatten, dense 4."""
    pictures, labels = samples(2000, seed=3)
    weight, bias = _ridge(pictures.reshape(len(pictures), -1), labels)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], "dense", transB=1),
    ]
    return model_of(nodes, {"w": weight, "b": bias}, ["batch", 1, 8, 8], ["batch", CLASSES], opset)


def brightness() -> onnx.ModelProto:
    """The mean, dense 4: so small that eight bits cost more space than they save."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w"], ["logits"], "dense", transB=1),
    ]
    weight = np.arange(CLASSES, dtype=np.float32).reshape(CLASSES, 1)
    return model_of(nodes, {"w": weight}, ["batch", 1, 8, 8], ["batch", CLASSES])


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _ridge(seen: Array, labels: Array) -> tuple[Array, Array]:
    """Weight [classes, features] and bias [classes] that fit one-hot labels in the least squares."""
    design = np.hstack([seen, np.ones((len(seen), 1))]).astype(np.float64)
    wanted = np.eye(CLASSES)[labels]
    solved = np.linalg.solve(design.T @ design + 10 * np.eye(design.shape[1]), design.T @ wanted)
    return solved[:-1].T.astype(np.float32), solved[-1].astype(np.float32)


def run(model: onnx.ModelProto, pictures: Array) -> Array:
    """What a model answers."""
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": pictures})[0])
