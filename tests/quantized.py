"""Graphs in integers, in the ranges that their values had on samples."""

import nets
import numpy as np
import onnx
import onnxruntime as ort

from modelctl.graph import histograms
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing import integers
from modelctl.graph.quantizing.recipe import CHAINS, Recipe
from modelctl.options import Method


def ranges(model: onnx.ModelProto, x: nets.Array) -> dict[str, Range]:
    """Of every value of a graph, on these samples."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = dict(zip(names, ort.InferenceSession(watched.SerializeToString()).run(None, {"x": x}), strict=True))
    told = {}
    for name, values in (found | {"x": x}).items():
        seen = Histogram()
        seen.add(np.asarray(values))
        told[name] = histograms.minmax(seen)
    return told


def static(model: onnx.ModelProto, x: nets.Array, **given: object) -> onnx.ModelProto:
    ready = prepare(model, "net")
    recipe = Recipe(method=Method.STATIC, **{"types": CHAINS} | given)  # type: ignore[arg-type]
    return integers.static(ready, integers.shapes(ready), ranges(ready, x), recipe)
