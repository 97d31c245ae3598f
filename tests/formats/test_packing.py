"""Packed weights: smaller, run as they are, put back bit for bit, and no harm in malformed ones."""

from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import ArtifactError
from modelctl.formats import packing

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8)


def sparse(shape: tuple[int, ...], share: float = 0.9, dtype: Any = np.float32, seed: int = 0) -> Array:
    """Numbers of which about this share is zero."""
    random = np.random.default_rng(seed)
    made: Array = (10 * random.standard_normal(shape)).astype(dtype)
    made[random.random(shape) < share] = 0
    return made


def one_weight(array: Array, opset: int = 17) -> onnx.ModelProto:
    """A model that answers its one weight, and takes `x`."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", kind, array.shape)],
        [numpy_helper.from_array(array, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def bits(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def sparse_net(share: float = 0.9) -> onnx.ModelProto:
    """The convolutional net with most of its large weights zero."""
    model = nets.convolutional()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim > 1:
            array[np.abs(array) < np.quantile(np.abs(array), share)] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def optimized(model: onnx.ModelProto, folder: Any) -> list[str]:
    """The operators that are left when onnxruntime has loaded a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(bits(model), options)
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("opset", [11, 13, 20])
def test_what_is_packed_is_smaller_and_comes_back(dtype: Any, opset: int) -> None:
    model = one_weight(sparse((40, 50), dtype=dtype), opset)
    packed = one_weight(sparse((40, 50), dtype=dtype), opset)
    saved = packing.pack(packed)
    if dtype is ml_dtypes.bfloat16 and opset < 13:
        assert (saved, bits(packed)) == (0, bits(model))
        return
    assert saved > 0
    assert -10 <= model.ByteSize() - packed.ByteSize() - saved <= 10  # lengths are told in lengths
    onnx.checker.check_model(packed, full_check=True)
    assert packing.unpack(packed, "m") == 1
    assert bits(packed) == bits(model)


@pytest.mark.parametrize("dtype", [one for one in DTYPES if one is not ml_dtypes.bfloat16])
def test_onnxruntime_sees_the_same_numbers(dtype: Any) -> None:
    array = sparse((40, 50), dtype=dtype)
    packed = one_weight(array)
    assert packing.pack(packed)
    found = ort.InferenceSession(bits(packed)).run(None, {"x": np.zeros(1, np.float32)})[0]
    assert np.asarray(found).tobytes() == array.tobytes()


def test_bfloat16_is_seen_through_float32() -> None:
    array = sparse((40, 50), dtype=ml_dtypes.bfloat16)
    packed = one_weight(array)
    packed.graph.node[0].CopyFrom(helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT))
    packed.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert packing.pack(packed)
    found = ort.InferenceSession(bits(packed)).run(None, {"x": np.zeros(1, np.float32)})[0]
    assert np.array_equal(np.asarray(found), array.astype(np.float32))


def test_a_net_is_loaded_as_if_it_were_dense(tmp_path: Any) -> None:
    model, packed = sparse_net(), sparse_net()
    saved = packing.pack(packed)
    assert saved > 0.8 * model.ByteSize() * 0.9
    pictures, _ = nets.samples(50)
    assert np.array_equal(nets.run(model, pictures), nets.run(packed, pictures))
    assert optimized(packed, tmp_path) == optimized(model, tmp_path)
    assert packing.unpack(packed, "m") == 2  # the first kernel is too small to gain
    assert bits(packed) == bits(model)


def test_what_would_not_gain_stays() -> None:
    for array in (sparse((40, 50), 0.1), sparse((2, 3)), np.ones((300, 300), np.float32), np.zeros((0, 3), np.float32)):
        model = one_weight(array)
        assert packing.pack(model) == 0
        assert bits(model) == bits(one_weight(array))
        assert packing.unpack(model, "m") == 0


def test_old_models_and_inputs_stay() -> None:
    array = sparse((40, 50))
    assert packing.pack(one_weight(array, 10)) == 0
    old = one_weight(array)
    old.ir_version = 3
    assert packing.pack(old) == 0
    model = one_weight(array)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, array.shape))
    assert packing.pack(model) == 0


def test_no_name_is_taken_twice() -> None:
    model = sparse_net()
    for place, node in enumerate(model.graph.node):
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name in ("f", "c2"):
                    names[at] = f"packed.{place if name == 'f' else 0}.values" if name == "c2" else "packed.axis"
    before = bits(model)
    pictures, _ = nets.samples(5)
    wanted = nets.run(model, pictures)
    assert packing.pack(model)
    assert np.array_equal(nets.run(model, pictures), wanted)
    assert packing.unpack(model, "m")
    assert bits(model) == before


def test_packed_twice_is_unpacked_once() -> None:
    model = sparse_net()
    packing.pack(model)
    again = onnx.ModelProto()
    again.CopyFrom(model)
    assert packing.pack(again) == 0
    assert packing.unpack(again, "m") == 2


def test_what_is_told_of_a_weight_stays() -> None:
    model = one_weight(sparse((40, 50)))
    model.graph.initializer[0].doc_string = "a weight"
    before = bits(model)
    assert packing.pack(model)
    packing.unpack(model, "m")
    assert bits(model) == before


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_tensor_comes_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    size = data.draw(st.integers(1, 4000))
    array = np.zeros(size, dtype)
    places = data.draw(st.lists(st.integers(0, size - 1), max_size=30))
    special = [1.0, -1.0, 0.0, -0.0, 3.0] + ([np.nan, np.inf] if dtype.itemsize > 1 else [])
    for place in places:
        array[place] = np.array(data.draw(st.sampled_from(special))).astype(dtype)
    rows = data.draw(st.sampled_from([one for one in (1, 2, 3, 5) if size % one == 0]))
    array = array.reshape(rows, -1) if data.draw(st.booleans()) else array
    model = one_weight(array)
    saved = packing.pack(model)
    assert saved >= 0
    if size * dtype.itemsize > 3000:
        assert saved > 0
    if saved and dtype != ml_dtypes.bfloat16:
        found = ort.InferenceSession(bits(model)).run(None, {"x": np.zeros(1, np.float32)})[0]
        assert np.asarray(found).tobytes() == array.tobytes()
    assert packing.unpack(model, "m") == (saved > 0)
    assert bits(model) == bits(one_weight(array))


def initializer(model: onnx.ModelProto, end: str) -> TensorProto:
    return next(one for one in model.graph.initializer if one.name.endswith(end))


def changed(end: str, array: Array) -> onnx.ModelProto:
    """A packed model in which one initializer holds something else."""
    model = one_weight(sparse((40, 50)))
    assert packing.pack(model)
    tensor = initializer(model, end)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def gaps_of() -> Array:
    model = one_weight(sparse((40, 50)))
    packing.pack(model)
    return numpy_helper.to_array(initializer(model, ".gaps")).copy()


def malformed() -> dict[str, onnx.ModelProto]:
    gaps = gaps_of()
    twice, wide = gaps.copy(), gaps.copy()
    twice[3] = 0
    wide[:] = 255
    found = {
        "a position twice": changed(".gaps", twice),
        "past the end": changed(".gaps", wide),
        "too few positions": changed(".gaps", gaps[:-1]),
        "none": changed(".gaps", gaps[:0]),
        "gaps of two axes": changed(".gaps", gaps.reshape(1, -1)),
        "gaps of another type": changed(".gaps", gaps.astype(np.int32)),
        "values of another type": changed(".values", np.zeros(len(gaps), np.float16)),
        "values of no type": changed(".values", np.zeros(len(gaps), np.int64)),
        "size and shape differ": changed(".2000", np.array([2001])),
        "no size": changed(".2000", np.zeros(0, np.int64)),
        "immense": changed(".40x50", np.array([2**40, 2**40])),
        "negative": changed(".40x50", np.array([-40, -50])),
        "of too many axes": changed(".40x50", np.array([40, 50] + [1] * 40)),
        "of endless axes": changed(".40x50", np.full(10**5, 2**60)),
        "another axis": changed(".axis", np.array(-1)),
        "axis with an axis": changed(".axis", np.array([0])),
    }
    long = changed(".2000", np.array([2**40]))
    initializer(long, ".40x50").CopyFrom(
        numpy_helper.from_array(np.array([2**20, 2**20]), initializer(long, ".40x50").name)
    )
    found["all but empty"] = long
    short = changed(".gaps", gaps)
    initializer(short, ".gaps").raw_data = bytes(5)
    found["cut short"] = short
    vast = changed(".gaps", gaps)
    initializer(vast, ".values").dims[0] = 2**50
    found["vast"] = vast
    odd = changed(".gaps", gaps)
    tensor = initializer(odd, ".gaps")
    tensor.ClearField("raw_data")
    tensor.int32_data.extend([1, 2**30, -5] + [1] * (len(gaps) - 3))
    found["numbers that are no bytes"] = odd
    outside = changed(".gaps", gaps)
    initializer(outside, ".values").data_location = TensorProto.EXTERNAL
    found["outside"] = outside
    twin = changed(".gaps", gaps)
    twin.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    found["a weight twice"] = twin
    return found


@pytest.mark.parametrize("what", malformed())
def test_malformed_ones_are_refused(what: str) -> None:
    with pytest.raises(
        ArtifactError, match=r"^m\.onnx: (its packed weight 'w' is malformed|holds the weight 'w' twice)"
    ):
        packing.unpack(malformed()[what], "m.onnx")


def test_what_is_only_similar_stays() -> None:
    def of(change: Any) -> onnx.ModelProto:
        model = one_weight(sparse((40, 50)))
        assert packing.pack(model)
        change(model.graph, {node.op_type: node for node in model.graph.node})
        return model

    def shown(graph: onnx.GraphProto, nodes: dict[str, onnx.NodeProto]) -> None:
        kind = TensorProto.INT64
        graph.output.append(helper.make_tensor_value_info(nodes["CumSum"].output[0], kind, [None]))

    def attribute(kind: str, name: str, value: Any) -> Any:
        return lambda graph, nodes: nodes[kind].attribute.append(helper.make_attribute(name, value))

    def read_again(graph: onnx.GraphProto, nodes: dict[str, onnx.NodeProto]) -> None:
        graph.node.add(op_type="Identity", input=[initializer_of(graph)], output=["other"])

    def an_input(graph: onnx.GraphProto, nodes: dict[str, onnx.NodeProto]) -> None:
        graph.input.append(helper.make_tensor_value_info(initializer_of(graph), TensorProto.FLOAT, [None]))

    def initializer_of(graph: onnx.GraphProto) -> str:
        return next(one.name for one in graph.initializer if one.name.endswith(".values"))

    def rewired(graph: onnx.GraphProto, nodes: dict[str, onnx.NodeProto]) -> None:
        nodes["ScatterElements"].input[0] = ""
        graph.initializer.add(name="")

    changes = [
        *(shown, read_again, an_input, rewired),
        attribute("CumSum", "exclusive", 1),
        attribute("CumSum", "reverse", 1),
        attribute("ScatterElements", "reduction", "add"),
        attribute("ConstantOfShape", "other", 1),
        attribute("Reshape", "allowzero", 1),
    ]
    for change in changes:
        model = of(change)
        before = bits(model)
        assert packing.unpack(model, "m") == 0
        assert bits(model) == before


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(place: int, flip: int) -> None:
    """Whatever else a changed file is, it is no bug: refused as malformed, or a model with other numbers in it."""
    data = bytearray(_PACKED)
    data[place % len(data)] ^= flip
    try:
        model = onnx.ModelProto.FromString(bytes(data))
    except Exception:  # noqa: BLE001 - protobuf's own refusal
        return
    try:
        packing.unpack(model, "m.onnx")
    except ArtifactError as error:
        assert error.message.startswith("m.onnx: ")


def _small() -> bytes:
    model = one_weight(sparse((20, 30)))
    assert packing.pack(model)
    return bits(model)


_PACKED = _small()
