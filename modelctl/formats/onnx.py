"""ONNX files: read from verified bytes, written deterministically, weights above 1.5 GiB beside the file.

The layout is ONNX's own (a `ModelProto` in protobuf, onnx/onnx.proto). Large tensors lie in `<file>.data`, 4096-byte
aligned, as the external data of the ONNX specification (docs/ExternalData.md).
"""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from modelctl import digests
from modelctl.artifact import FORMATS, Artifact, Payload
from modelctl.data.samples import Array
from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.formats import functions, packing, wire
from modelctl.making import refuse_folder
from modelctl.manifest import FileEntry, Manifest

INLINE_LIMIT_BYTES = 3 << 29  # protobuf stops at 2 GiB
DATA_SUFFIX = ".data"
BEFORE_SUFFIX = ".before"  # of a file in memory that holds the weights of the model that another one was made of
ALIGNMENT_BYTES = 4096
Place = tuple[str, int, int]  # the name of the file in which data lie, where they begin, how many bytes they are
Numbers = Mapping[str, Callable[[], memoryview]]  # what initializers hold, by name, asked for when it is needed
_IN_WHOLE_BYTES = frozenset(
    {
        *(onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16),
        *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64),
        *(onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
    }
)


def open_model(path: Path) -> Artifact:
    """The artifact at `path`; a foreign one together with the files beside it that hold its weights.

    ArtifactError when such a file is missing, is a link, or would lie outside the folder.
    """
    found = Artifact.open(path)
    if found.manifest_sha256 is not None:
        return found
    entries = list(found.manifest.files)
    tensors = external_tensors(parse_bytes(path.read_bytes(), str(path)))
    for location in sorted({place_of(tensor)[0] for tensor in tensors} - {path.name}):
        beside = path.with_name(location)
        if beside.is_symlink() or not beside.is_file():
            what = "is a link" if beside.is_symlink() else "no such file"
            raise ArtifactError(f"{beside}: {what}, and {path.name} keeps weights in it")
        entries.append(FileEntry(path=location, size=beside.stat().st_size, sha256=digests.of_file(beside)))
    return Artifact(path, msgspec.structs.replace(found.manifest, files=tuple(entries)), None)


def refuse_other(described: Manifest, path: Path, step: str) -> None:
    """UnsupportedError, with what to type first, if the model at `path` is not onnx, which is what `step` reads."""
    found = described.format
    if found == "onnx":
        return
    source = shlex.quote(str(path))
    hints = {
        "sealed": f"modelctl decrypt {source} -o . --identity key.pem",
        "pt2": f"modelctl export {source} -o {shlex.quote(path.with_suffix('.onnx').name)}",
    }
    weights = f"modelctl export net:build --weights {source} -o model.onnx"
    hint = hints.get(found, weights if found in ("checkpoint", "safetensors") else None)
    raise UnsupportedError(f"{path}: {step} reads onnx, this is {found}", hint)


def refuse_other_out(out: Path, step: str) -> None:
    """UnsupportedError if `out` has another suffix than .onnx, which is what `step` writes; UsageError for a folder."""
    refuse_folder(out)
    if FORMATS.get(out.suffix.lower()) != "onnx":
        raise UnsupportedError(f"{out}: {step} writes .onnx", f"-o {out.with_suffix('.onnx').name}")


def parse(payload: Payload) -> onnx.ModelProto:
    """The model in a payload, its external weights taken in, its packed ones dense; ArtifactError if it is unsound."""
    name = payload.manifest.files[0].path
    model = parse_bytes(payload.primary, name)
    for tensor in external_tensors(model):
        take_in(tensor, payload.files, name)
    packing.unpack(model, name)
    return model


def outline(payload: Payload) -> onnx.ModelProto:
    """As `parse`, but the weights of the graph stay where they lie in the payload, as external data of the model.

    `array_of` reads one, `take_in` takes one in, and both find what they ask for. A model that is packed, or has
    functions, subgraphs or external data elsewhere, is taken in as a whole: who unfolds those looks into the weights.
    """
    name = payload.manifest.files[0].path
    model = parse_bytes(wire.without_weights(payload.primary, name, ALIGNMENT_BYTES), name)
    weights = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    has_graphs = any(one.HasField("g") or one.graphs for node in model.graph.node for one in node.attribute)
    if has_graphs or model.functions or packing.is_packed(model) or len(external_tensors(model)) > len(weights):
        return parse(payload)
    for tensor in weights:
        if not _is_array(tensor, _data_of(tensor, payload.files, name)):
            take_in(tensor, payload.files, name)
    return model


def array_of(tensor: onnx.TensorProto, files: Mapping[str, bytes]) -> Array:
    """The numbers of a tensor; where they lie in one of these files, a view of it."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(_data_of(tensor, files), dtype).reshape(tensor.dims)


def take_in(tensor: onnx.TensorProto, files: Mapping[str, bytes], name: str = "model") -> None:
    """Give an external tensor of the model `name` its data; ArtifactError where they are not in these files."""
    tensor.raw_data = bytes(_data_of(tensor, files, name))
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _data_of(tensor: onnx.TensorProto, files: Mapping[str, bytes], name: str = "model") -> memoryview:
    location, offset, length = place_of(tensor)
    data = files.get(location)
    if data is None:
        hint = f"modelctl export {name} -o model.onnx"
        raise ArtifactError(f"{name}: keeps weights in {location!r}, which its manifest does not list", hint)
    end = len(data) if length is None else offset + length
    if offset > end or end > len(data):
        raise ArtifactError(f"{name}: weight {tensor.name!r} reaches past the end of {location!r}")
    return memoryview(data)[offset:end]


def _is_array(tensor: onnx.TensorProto, data: memoryview) -> bool:
    """Whether these bytes are the tensor's numbers, one after another, as many as it says."""
    if tensor.data_type not in _IN_WHOLE_BYTES or tensor.HasField("segment") or min(tensor.dims, default=0) < 0:
        return False
    return len(data) == _size_of(tensor)


def _size_of(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def parse_bytes(data: bytes, name: str) -> onnx.ModelProto:
    """The model in the bytes of one file called `name`, external weights left outside; ArtifactError if it is none."""
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ArtifactError(f"{name}: not an ONNX model, or cut short") from error
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        raise ArtifactError(f"{name}: not an ONNX model: {'empty' if not data else 'holds no graph'}")
    functions.refuse_unfolding(model, name)
    return model


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors, in the graph, its subgraphs, functions and attributes, whose data lie outside the model's file."""
    found: list[onnx.TensorProto] = []
    nodes = [node for function in model.functions for node in function.node]
    attributes = [one for function in model.functions for one in function.attribute_proto]
    graphs = [model.graph]
    while graphs or nodes or attributes:
        if graphs:
            graph = graphs.pop()
            held = [*graph.initializer, *_dense(graph.sparse_initializer)]
            found += [tensor for tensor in held if uses_external_data(tensor)]
            nodes += graph.node
        while nodes:
            attributes += nodes.pop().attribute
        while attributes:
            one = attributes.pop()
            held = [one.t, *one.tensors, *_dense([one.sparse_tensor, *one.sparse_tensors])]
            found += [tensor for tensor in held if uses_external_data(tensor)]
            graphs += [one.g] if one.HasField("g") else []
            graphs += one.graphs
    return found


def _dense(sparse: Iterable[onnx.SparseTensorProto]) -> list[onnx.TensorProto]:
    return [part for one in sparse for part in (one.values, one.indices)]


def place_of(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """File name, offset and length (None: to the end) of an external tensor; ArtifactError if it leaves its folder."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    if not location or PurePosixPath(location).name != location or "\\" in location:
        raise ArtifactError(f"weight {tensor.name!r} is kept in {location!r}, which is not a file beside the model")
    try:
        offset = int(told.get("offset", "0"))
        length = int(told["length"]) if "length" in told else None
    except ValueError as error:
        raise ArtifactError(f"weight {tensor.name!r} has an external place that is not a number") from error
    if offset < 0 or (length is not None and length < 0):
        raise ArtifactError(f"weight {tensor.name!r} has a negative external place")
    return location, offset, length


def keep_packed(model: onnx.ModelProto, payload: Payload) -> None:
    """Pack, in place, a model that was made of a payload whose weights are packed; others stay as they are."""
    name = payload.manifest.files[0].path
    if b"ScatterElements" in payload.primary and packing.is_packed(parse_bytes(payload.primary, name)):
        packing.pack(model)


def save(
    model: onnx.ModelProto, path: Path, numbers: Numbers | None = None, files: Mapping[str, bytes] | None = None
) -> None:
    """Write a model, the same bytes for the same model; weights go to `<file>.data` when all are above 1.5 GiB.

    `numbers` tell of some initializers, by name, what they hold in place of what the model has: each is asked for as
    it is written, and let go. What is left outside of the model (`outline`) is taken from `files`. Where weights go
    beside the file, those in the model are moved out of it. UnsupportedError when all else is more than protobuf takes.
    """
    numbers = {**outside(model, files or {}), **(numbers or {})}
    late = {place: tensor for place, tensor in enumerate(model.graph.initializer) if tensor.name in numbers}
    before = {place: list(tensor.external_data) for place, tensor in late.items()}
    for tensor in late.values():
        _let_in(tensor)
    sizes = {place: _size_of(tensor) for place, tensor in late.items()}
    try:
        inside = sum(_inline_size(tensor) for tensor in model.graph.initializer if tensor.name not in numbers)
        total = inside + sum(sizes.values())
        if total > INLINE_LIMIT_BYTES or model.ByteSize() + sum(sizes.values()) > INLINE_LIMIT_BYTES:
            _move_out(model, path, numbers)
            sizes = {}
        data = model.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise UnsupportedError(f"{path}: holds more than 2 GiB beside its weights") from error
    finally:
        for place, entries in before.items():
            _let_in(late[place], entries)
    if not sizes:
        path.write_bytes(data)
        return
    with path.open("wb") as file:
        for piece in wire.with_weights(data, sizes):
            file.write(numbers[late[piece].name]() if isinstance(piece, int) else piece)


def outside(model: onnx.ModelProto, files: Mapping[str, bytes]) -> dict[str, Callable[[], memoryview]]:
    """What the initializers hold that lie in these files and not in the model, by name."""
    found = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return {tensor.name: partial(_same, _data_of(tensor, files)) for tensor in found}


def _same(data: memoryview) -> memoryview:
    return data


def _let_in(tensor: onnx.TensorProto, entries: Sequence[onnx.StringStringEntryProto] = ()) -> None:
    """Make a tensor one that has its data within, none as yet; or outside, where `entries` say."""
    del tensor.external_data[:]
    tensor.raw_data = b""
    tensor.ClearField("data_location")
    if entries:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.extend(entries)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model holds more weights than fit in one protobuf with it, so that it can't be written as one."""
    return sum(map(_inline_size, model.graph.initializer)) > INLINE_LIMIT_BYTES


def _inline_size(tensor: onnx.TensorProto) -> int:
    if uses_external_data(tensor):
        return 0
    return _size_of(tensor) if tensor.data_type in _IN_WHOLE_BYTES else tensor.ByteSize()


def _move_out(model: onnx.ModelProto, path: Path, numbers: Numbers) -> None:
    beside = path.with_name(path.name + DATA_SUFFIX)
    with beside.open("wb") as file:
        for tensor in model.graph.initializer:
            data = numbers[tensor.name]() if tensor.name in numbers else memoryview(tensor.raw_data)
            if data.nbytes < ALIGNMENT_BYTES:
                if tensor.name in numbers:
                    tensor.raw_data = bytes(data)
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
            _lie(tensor, beside.name, file.tell(), data.nbytes)
            file.write(data)


def _lie(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say of a tensor that its data lie outside."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def bare(model: onnx.ModelProto, place: Callable[[onnx.TensorProto], Place | None]) -> onnx.ModelProto:
    """A copy of what can be run, in which each initializer that `place` knows one for says that its data lie there."""
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    made.graph.name = model.graph.name
    for field in ("node", "input", "output", "sparse_initializer"):
        getattr(made.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        lies = place(tensor)
        if lies is None:
            made.graph.initializer.append(tensor)
        else:
            _lie(made.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims), *lies)
    return made


def payload_of(model: onnx.ModelProto, like: Payload) -> Payload:
    """A model in memory as a payload that was never on disk, with the manifest of another one; for trying it out.

    What is left outside of the model (`outline`) lies in the files of `like`, and still does; what is in it goes into a
    file beside it where it is more than 1.5 GiB.
    """
    name = like.manifest.files[0].path
    large = is_large(model)
    if not large and not any(map(uses_external_data, model.graph.initializer)):
        return Payload(like.manifest, {name: model.SerializeToString(deterministic=True)})
    beside, files = BytesIO(), {}

    def place(tensor: onnx.TensorProto) -> Place | None:
        if uses_external_data(tensor):
            location, offset, _ = place_of(tensor)
            known = name + BEFORE_SUFFIX if location == name else location
            files[known] = like.files.get(location, b"")
            return known, offset, _data_of(tensor, like.files, name).nbytes
        if not large or not tensor.HasField("raw_data") or _size_of(tensor) < ALIGNMENT_BYTES:
            return None
        beside.write(b"\0" * (-beside.tell() % ALIGNMENT_BYTES))
        return name + DATA_SUFFIX, beside.tell(), beside.write(tensor.raw_data)

    made = bare(model, place)
    if large:
        files[name + DATA_SUFFIX] = beside.getvalue()
    return Payload(like.manifest, {name: made.SerializeToString(deterministic=True)} | files)


def written(path: Path) -> Payload:
    """What a step has just saved at `path`, with all that lies beside it in the draft's own folder; to try it out."""
    return undescribed(
        {file.name: file.read_bytes() for file in sorted(path.parent.iterdir(), key=lambda file: file != path)}
    )


def undescribed(files: Mapping[str, bytes]) -> Payload:
    """Files in memory that no manifest describes yet, the model's first, as a payload; for trying it out.

    Its manifest tells names and sizes only; digests are taken when a draft is committed.
    """
    entries = tuple(FileEntry(path=name, size=len(data), sha256="0" * 64) for name, data in files.items())
    return Payload(Manifest(name=Path(entries[0].path).stem, format="onnx", files=entries), dict(files))
