"""How the activations of a graph are spread on samples: one pass, batch by batch, in memory that does not grow.

The wanted activations become outputs of the graph, and each goes into its histogram (`histograms.py`) as soon as it is
computed; nothing else is kept. onnxruntime maps the weights from a file whose name is gone by then, so that whoever has
made a `Calibrator` may let the model go: what is held are the mapped weights and one batch.

Any method's ranges are found in the same histograms. `write_ranges` hands them to `onnxruntime.quantization`:
`quantize_static(…, None, calibration_cache_path=…, calibrate_method=CalibrationMethod.MinMax)` then runs nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from modelctl.data.samples import Samples
from modelctl.errors import DataError, UnsupportedError
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.session import LOAD_ERRORS, reason
from modelctl.progress import Progress, silent

INLINE_BYTES = 1024  # what is smaller may be a shape or a bound, which onnxruntime wants to see while it loads
ALIGNMENT_BYTES = 4096  # as onnx/docs/ExternalData.md advises, so that the file can be mapped
WEIGHTS = "weights"
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_MAPPED = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64),
)


def activations(model: onnx.ModelProto, types: Collection[str], excluded: Collection[str] = ()) -> list[str]:
    """What goes into and comes out of the nodes of these types, but for constants and nodes `excluded` by name."""
    held = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in types and node.name not in excluded]
    found = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    return [name for name in found if name and name not in held]


class Calibrator:
    """A graph that is run to see how its activations are spread: `histograms`, by the name of the value."""

    def __init__(
        self, model: onnx.ModelProto, name: str, wanted: Iterable[str], folder: Path, threads: int = 1
    ) -> None:
        """Load `model`, called `name`, to look at those of the values `wanted` that are floats.

        Its weights are written into an unnamed file below `folder`. UnsupportedError when onnxruntime can't run it.
        """
        self.name = name
        there = {one.name for one in model.graph.input}.union(*(node.output for node in model.graph.node))
        names = [value for value in dict.fromkeys(wanted) if value in there]
        try:
            with TemporaryDirectory(dir=folder) as place:
                self._session = _session(model, names, Path(place), threads)
        except (*LOAD_ERRORS, ort_errors.NotImplemented) as error:
            raise UnsupportedError(f"{name}: can't be run to be calibrated: {reason(error)}") from error
        kinds = {one.name: one.type for one in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.histograms = {value: Histogram() for value in names if kinds[value] in _FLOATS}
        given = {one.name for one in self._session.get_inputs()}
        self._asked = [value for value in self.histograms if value not in given]

    def watch(self, batches: Iterable[Samples], progress: Progress = silent, total: int | None = None) -> None:
        """Take in what `batches` (of `total`, if known) give; may be called again, with more. DataError if one fails.

        Batches in any order give the same histograms; one that fails leaves nothing in them.
        """
        for place, batch in enumerate(batches, 1):
            given = {value: ort.OrtValue.ortvalue_from_numpy(array) for value, array in batch.inputs.items()}
            try:
                found = self._session.run_with_ort_values(self._asked, given) if self._asked else []
            except (ort_errors.InvalidArgument, ValueError, ort_errors.Fail, ort_errors.RuntimeException) as error:
                raise DataError(f"{self.name}: failed on the calibration samples: {reason(error)}") from error
            for value in self.histograms.keys() & batch.inputs.keys():
                self.histograms[value].add(batch.inputs[value])
            for value in self._asked:
                self.histograms[value].add(found.pop(0).numpy())  # let go of, one after the other
            progress.advance("calibrating", place, total, "batches")

    def unbounded(self) -> list[str]:
        """The values that were infinite or NaN somewhere, as masks are: they have no range, and must stay in float."""
        return [value for value, found in self.histograms.items() if found.unbounded]


def write_ranges(ranges: Mapping[str, Range], path: Path) -> None:
    """Write the range of each value as the calibration cache of `onnxruntime.quantization.quantize_static`."""
    held = {value: (np.float32(low), np.float32(high)) for value, (low, high) in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, held), path)


def _session(model: onnx.ModelProto, wanted: Iterable[str], folder: Path, threads: int) -> ort.InferenceSession:
    """The graph with the `wanted` values as outputs too; onnxruntime maps the weights from a file in `folder`.

    Each node runs by itself, as the graph has it, and nothing is held beside the mapped weights.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are a second copy
    with (folder / WEIGHTS).open("wb") as file:
        bare = _without_weights(model, file)
    public = {one.name for one in (*model.graph.input, *model.graph.output)}
    bare.graph.output.extend(onnx.ValueInfoProto(name=value) for value in wanted if value not in public)
    path = folder / "model.onnx"
    path.write_bytes(bare.SerializeToString(deterministic=True))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _without_weights(model: onnx.ModelProto, file: IO[bytes]) -> onnx.ModelProto:
    """The graph alone: its larger weights go into `file`, one after the other."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = model.graph.name
    for field in ("node", "input", "output", "sparse_initializer"):
        getattr(bare.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type not in _MAPPED or array.nbytes < INLINE_BYTES:
            bare.graph.initializer.append(tensor)
            continue
        file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
        kept = bare.graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", WEIGHTS), ("offset", file.tell()), ("length", array.nbytes)):
            kept.external_data.add(key=key, value=str(value))
        file.write(np.ascontiguousarray(array).data)
    return bare
