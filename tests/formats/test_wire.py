"""Large weights are left out of the bytes of a model and put in again; what is no model is told as before."""

import struct

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Payload
from modelctl.errors import ArtifactError
from modelctl.formats import onnx as onnx_format
from modelctl.formats import wire
from modelctl.manifest import FileEntry, Manifest

NAME = "m.onnx"


def weighted() -> onnx.ModelProto:
    """Two weights, a scalar, a weight that is a list of numbers, one of strings and one that holds nothing."""
    a = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "a")
    b = numpy_helper.from_array(np.arange(3, dtype=np.int8), "b")
    a.doc_string = "of a"
    lists = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    words = helper.make_tensor("d", TensorProto.STRING, [1], ["word"])  # type: ignore[list-item]
    nothing = numpy_helper.from_array(np.zeros((0, 2), np.float32), "e")
    scalar = numpy_helper.from_array(np.array(3, np.float32), "f")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    held = [a, b, lists, words, nothing, scalar]
    graph = helper.make_graph([helper.make_node("Add", ["x", "a"], ["y"])], "g", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], doc_string="all")


def payload(data: bytes, **beside: bytes) -> Payload:
    entries = tuple(FileEntry(path=name, size=1, sha256="0" * 64) for name in (NAME, *beside))
    return Payload(Manifest(name="m", format="onnx", files=entries), {NAME: data, **beside})


def whole(found: Payload) -> onnx.ModelProto:
    """An outline whose weights were taken in."""
    model = onnx_format.outline(found)
    for tensor in onnx_format.external_tensors(model):
        onnx_format.take_in(tensor, found.files)
    return model


@pytest.fixture(autouse=True)
def _all_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 1)


def test_an_outline_holds_no_weights_and_reads_all_of_them() -> None:
    model = weighted()
    found = payload(model.SerializeToString())
    outline = onnx_format.outline(found)
    assert [one.name for one in onnx_format.external_tensors(outline)] == ["a", "b", "f"]
    assert not any(one.raw_data for one in outline.graph.initializer)
    for mine, wanted in zip(outline.graph.initializer, model.graph.initializer, strict=True):
        array = onnx_format.array_of(mine, found.files)
        assert array.shape == tuple(wanted.dims)
        assert np.array_equal(array, numpy_helper.to_array(wanted))
    assert whole(found) == model


def test_weights_are_put_in_where_they_were() -> None:
    model = weighted()
    data, emptied = model.SerializeToString(deterministic=True), weighted()
    kept = {}
    for place in (0, 1, 4, 5):
        tensor = emptied.graph.initializer[place]
        kept[place], tensor.raw_data = tensor.raw_data, b""
    pieces = wire.with_weights(emptied.SerializeToString(deterministic=True), {one: len(kept[one]) for one in kept})
    assert b"".join(kept[one] if isinstance(one, int) else one for one in pieces) == data


def outcome(found: Payload, read: object) -> bytes | str:
    """What a way to read comes to; that a tensor says it lies inside the file, as it does anyway, is nothing."""
    assert callable(read)
    try:
        model = read(found)
    except ArtifactError as error:
        return str(error)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.DEFAULT:
            tensor.ClearField("data_location")
    return bytes(model.SerializeToString(deterministic=True))


def test_bytes_that_are_cut_short_or_changed_are_told_as_if_nothing_were_left_out() -> None:
    data = weighted().SerializeToString()
    for place in range(len(data)):
        for other in (data[:place], *(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :] for bit in (1, 8))):
            found = payload(other)
            assert outcome(found, whole) == outcome(found, onnx_format.parse), (place, other)


@given(st.binary(max_size=48))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_read_to_their_end_or_refused(data: bytes) -> None:
    try:
        found = list(wire.fields(data))
    except ValueError:
        assert wire.without_weights(data, NAME, 1) == data
        return
    assert b"".join(data[one.begin : one.end] for one in found) == data


@given(st.lists(st.tuples(st.sampled_from([1, 5, 7, 9, 13, 14]), st.binary(max_size=12)), max_size=6))
@settings(deadline=None, max_examples=200)
def test_a_tensor_told_twice_or_by_halves_is_what_protobuf_makes_of_it(parts: list[tuple[int, bytes]]) -> None:
    tensor = b"".join(struct.pack("BB", number << 3 | 2, len(content)) + content for number, content in parts)
    model = weighted()
    data = model.SerializeToString()
    graph = struct.pack("BB", 5 << 3 | 2, len(tensor)) + tensor if len(tensor) < 128 else b""
    found = payload(data + struct.pack("BB", 7 << 3 | 2, len(graph)) + graph if len(graph) < 128 else data)
    assert outcome(found, whole) == outcome(found, onnx_format.parse)


@pytest.mark.parametrize(
    ("place", "trouble"),
    [
        ({"location": "w.bin", "offset": "8", "length": "24"}, "reaches past the end"),
        ({"location": "w.bin", "offset": "40"}, "reaches past the end"),
        ({"location": "w.bin", "offset": "-1"}, "negative"),
        ({"location": "w.bin", "length": "x"}, "not a number"),
        ({"location": "other.bin"}, "does not list"),
        ({"location": "../w.bin"}, "not a file beside"),
    ],
)
def test_a_place_that_is_not_the_models_own_is_refused(place: dict[str, str], trouble: str) -> None:
    model = weighted()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(ArtifactError, match=trouble):
        onnx_format.outline(payload(model.SerializeToString(), **{"w.bin": bytes(24)}))
