"""A model names files as its weights in every place that ONNX has for a tensor; none but its own may be read."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.session import Session

PLACES = ("initializer", "sparse initializer", "attribute", "sparse attribute", "function", "default of a function")


def outside(dtype: int = TensorProto.FLOAT) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=dtype, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(place: str) -> onnx.ModelProto:
    """A model whose answer is what lies in `secret.bin`."""
    constant = helper.make_node("Constant", [], ["y"])
    sparse = onnx.SparseTensorProto(dims=[4], values=outside())
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))
    nodes, functions = [constant], []
    if place == "attribute":
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(outside())
    elif place == "sparse attribute":
        kind = onnx.AttributeProto.SPARSE_TENSOR
        constant.attribute.add(name="sparse_value", type=kind).sparse_tensor.CopyFrom(sparse)
    elif "function" in place:
        value = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        function = onnx.FunctionProto(name="F", domain="d", input=["x"], output=["y"])
        function.opset_import.add(domain="", version=18)
        if place == "function":
            value.t.CopyFrom(outside())
        else:
            value.ref_attr_name = "w"
            function.attribute_proto.add(name="w", type=onnx.AttributeProto.TENSOR).t.CopyFrom(outside())
        function.node.append(constant)
        functions, nodes = [function], [helper.make_node("F", ["x"], ["y"], domain="d")]
    else:
        nodes = [helper.make_node("Identity", ["w"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    if place == "initializer":
        graph.initializer.append(outside())
    elif place == "sparse initializer":
        graph.sparse_initializer.append(sparse)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


@pytest.mark.parametrize("place", PLACES)
def test_no_place_for_a_tensor_reads_a_file_that_is_not_the_models(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    Path("m.onnx").write_bytes(model(place).SerializeToString())
    found = Artifact.open(Path("m.onnx"))
    with pytest.raises(ArtifactError, match="which its manifest does not list"):
        Session(found.load())
    with pytest.raises(ArtifactError, match="which its manifest does not list"):
        onnx_format.parse(found.load())
    assert [entry.path for entry in onnx_format.open_model(Path("m.onnx")).manifest.files] == ["m.onnx", "secret.bin"]
