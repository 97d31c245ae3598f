"""Fewer bits for weights and activations, by onnxruntime.quantization: what it needs, what it leaves, what it trips on.

`static` writes QuantizeLinear/DequantizeLinear pairs with ranges from calibration samples, `dynamic` finds ranges while
running. Activations are uint8 and weights int8: on x86 that pair has the fast kernels (int8 activations ran at ×1.67
where uint8 ran at ×2.06). The graph's outputs stay in float: eight bits there cost agreement and bring nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import TensorProto
from onnx.shape_inference import InferenceError
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType

from modelctl.data.samples import Array, Samples
from modelctl.errors import UnsupportedError
from modelctl.graph import weights
from modelctl.graph.chatter import hushed
from modelctl.graph.session import LOAD_ERRORS, Session
from modelctl.options import Calibration, Method, QuantizeOptions
from modelctl.progress import Progress

STATIC_TYPES = (
    "Conv",
    "Gemm",
    "MatMul",
    "Relu",
    "Clip",
    "MaxPool",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
)
DYNAMIC_TYPES = ("MatMul", "Gemm")
BATCH = 32

# What onnxruntime.quantization was seen to raise on sound graphs: it checks little, and stumbles where it did not look.
_STUMBLES = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError, NotImplementedError,
    InferenceError, onnx.checker.ValidationError, *LOAD_ERRORS,
)  # fmt: skip

_METHODS = {
    Calibration.MINMAX: CalibrationMethod.MinMax,
    Calibration.ENTROPY: CalibrationMethod.Entropy,
    Calibration.PERCENTILE: CalibrationMethod.Percentile,
}


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Samples as onnxruntime.quantization asks for them: a batch at a time, or only those of a range of batches."""

    def __init__(self, samples: Samples, size: int, progress: Progress) -> None:
        self._batches = [batch.inputs for batch in samples.filled_batches(size)]
        self._progress = progress
        self.set_range(0, len(self._batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(range(start_index, min(end_index, len(self._batches))))

    def get_next(self) -> dict[str, Array] | None:
        place = next(self._range, None)
        if place is None:
            return None
        self._progress.advance("calibrating", place + 1, len(self._batches), "batches")
        return dict(self._batches[place])


def static(
    model: onnx.ModelProto,
    samples: Samples,
    session: Session,
    folder: Path,
    options: QuantizeOptions,
    excluded: Sequence[str],
    per_channel: bool,
    progress: Progress,
) -> onnx.ModelProto:
    """`model` with int8 weights and uint8 activations, their ranges from `samples`; UnsupportedError if it can't be.

    `session` says what size of batch the model takes; what must be written in between goes below `folder`.
    """
    fixed = session.inputs[0].shape[0]
    reader = _Calibration(samples, fixed if isinstance(fixed, int) else min(BATCH, len(samples)), progress)
    with _stumbles_named(), TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "static.onnx"
        ort_quantization.quantize_static(
            model,
            out,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(types_of(model, Method.STATIC, options)),
            nodes_to_exclude=list(excluded),
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[options.calibration],
            extra_options={"CalibStridedMinMax": 1},  # a batch at a time, so that memory does not grow with samples
        )
        return _tidied(onnx.load(out))


def dynamic(model: onnx.ModelProto, folder: Path, options: QuantizeOptions, per_channel: bool) -> onnx.ModelProto:
    """`model` with int8 weights, activations quantized while it runs; UnsupportedError if it can't be."""
    with _stumbles_named(), TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "dynamic.onnx"
        ort_quantization.quantize_dynamic(
            model,
            out,
            op_types_to_quantize=list(types_of(model, Method.DYNAMIC, options)),
            nodes_to_exclude=list(options.excludes),
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return _tidied(onnx.load(out))


def types_of(model: onnx.ModelProto, method: Method, options: QuantizeOptions) -> tuple[str, ...]:
    """The operator types to quantize: those that are named, else those that gain.

    Sums gain in a convolutional net (×1.96 for ×1.73), but lose along a transformer's residuals.
    """
    if options.op_types:
        return options.op_types
    if method is Method.DYNAMIC:
        return DYNAMIC_TYPES
    convolutional = any(node.op_type == "Conv" for node in model.graph.node)
    return (*STATIC_TYPES, "Add") if convolutional else STATIC_TYPES


def check(model: onnx.ModelProto, name: str, method: Method, options: QuantizeOptions) -> None:
    """UnsupportedError for a model, called `name`, that onnxruntime.quantization would only stumble over."""
    types = types_of(model, method, options)
    if not any(node.op_type in types for node in model.graph.node):
        raise UnsupportedError(f"{name}: has no node of the types to quantize: {', '.join(types)}")
    if any(tensor.data_type != TensorProto.FLOAT for tensor in weights.prunable(model)):
        raise UnsupportedError(f"{name}: its weights are not all float32, which {method} needs")


@contextlib.contextmanager
def _stumbles_named() -> Iterator[None]:
    """Keep what onnxruntime.quantization says to itself, and name what it stumbles over."""
    try:
        with hushed():
            yield
    except _STUMBLES as error:
        what = str(error).strip().splitlines()
        told = what[0] if what else type(error).__name__
        raise UnsupportedError(f"onnxruntime.quantization stumbles: {told}") from error


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what no one reads any more: pairs at the outputs, unused tensors, notes, stale shapes."""
    _float_outputs(model.graph)
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:], model.metadata_props[:]
    graph.initializer.extend(sorted(kept, key=lambda tensor: tensor.name))
    for node in graph.node:
        node.doc_string = ""
    for tensor in graph.initializer:
        tensor.doc_string = ""
    return model


def _float_outputs(graph: onnx.GraphProto) -> None:
    """Take away QuantizeLinear, DequantizeLinear in front of an output, so that what they took in is the output."""
    maker = {name: node for node in graph.node for name in node.output}
    for out in graph.output:
        last = maker.get(out.name)
        first = maker.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if last is None or first is None or first.op_type != "QuantizeLinear" or first.input[0] not in maker:
            continue
        if sum(name in (first.output[0], out.name) for node in graph.node for name in node.input) != 1:
            continue
        inner = first.input[0]
        graph.node.remove(first)
        graph.node.remove(last)
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == inner:
                        names[place] = out.name
