"""How the activations of a graph are spread on samples: one pass, batch by batch, in memory that does not grow.

The wanted activations become outputs of the graph, and each goes into its histogram (`histograms.py`) as soon as it is
computed; nothing else is kept. Weights in the model are mapped from a file whose name is gone by then, so that whoever
has made a `Calibrator` may let the model go; weights outside of it, in the files of a payload, are used where they lie,
and onnxruntime makes no copy. What is held are the weights, once, and one batch.

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
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from modelctl.data.samples import Samples
from modelctl.errors import DataError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.histograms import Histogram, Range
from modelctl.graph.session import LOAD_ERRORS, reason
from modelctl.progress import Progress, silent

INLINE_BYTES = 1024  # what is smaller may be a shape or a bound, which onnxruntime wants to see while it loads
ALIGNMENT_BYTES = 4096  # as onnx/docs/ExternalData.md advises, so that the file can be mapped
WEIGHTS, ELSEWHERE = "weights", "elsewhere"
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
        self,
        model: onnx.ModelProto,
        name: str,
        wanted: Iterable[str],
        folder: Path,
        threads: int = 1,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load `model`, called `name`, to look at those of the values `wanted` that are floats.

        Its weights are written into an unnamed file below `folder`; those that lie outside of it, in `files`, as
        `formats.onnx.outline` leaves them, are used where they are. UnsupportedError when onnxruntime can't run it.
        """
        self.name, self.seen = name, 0
        there = {one.name for one in model.graph.input}.union(*(node.output for node in model.graph.node))
        names = [value for value in dict.fromkeys(wanted) if value in there]
        try:
            with TemporaryDirectory(dir=folder) as place:
                self._session, self._held = _session(model, names, files or {}, Path(place), threads)
        except (*LOAD_ERRORS, ort_errors.NotImplemented) as error:
            raise UnsupportedError(f"{name}: can't be run to be calibrated: {reason(error)}") from error
        kinds = {one.name: one.type for one in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.histograms = {value: Histogram() for value in names if kinds[value] in _FLOATS}
        given = {one.name for one in self._session.get_inputs()}
        self._asked = [value for value in self.histograms if value not in given]

    def watch(self, batches: Iterable[Samples], progress: Progress = silent, total: int | None = None) -> None:
        """Take in what `batches` (of `total`, if known) give; may be called again, with more. DataError if one fails.

        Batches in any order give the same histograms; one that fails leaves nothing in them. `seen` counts the samples
        of the others, so that `samples.batches(size, start=seen)` are those that are left.
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
            self.seen += len(batch)
            progress.advance("calibrating", place, total, "batches")

    def unbounded(self) -> list[str]:
        """The values that were infinite or NaN somewhere, as masks are: they have no range, and must stay in float."""
        return [value for value, found in self.histograms.items() if found.unbounded]


def write_ranges(ranges: Mapping[str, Range], path: Path) -> None:
    """Write the range of each value as the calibration cache of `onnxruntime.quantization.quantize_static`."""
    held = {value: (np.float32(low), np.float32(high)) for value, (low, high) in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, held), path)


def _session(
    model: onnx.ModelProto, wanted: Iterable[str], files: Mapping[str, bytes], folder: Path, threads: int
) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """The graph with the `wanted` values as outputs too, and what has to be held as long as it is run.

    Each node runs by itself, as the graph has it. Weights that lie in `files` are used where they lie; those in the
    model are written into a file in `folder`, which onnxruntime maps.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are a second copy
    with (folder / WEIGHTS).open("wb") as file, (folder / ELSEWHERE).open("wb") as hole:
        weights = _Weights(options, files, file)
        made = onnx_format.bare(model, weights.place)
        hole.truncate(weights.largest)  # onnxruntime wants a file to be there, and never reads it
    for tensor in made.graph.initializer:
        if uses_external_data(tensor) and onnx_format.place_of(tensor)[0] not in (WEIGHTS, ELSEWHERE):
            onnx_format.take_in(tensor, files)
    public = {one.name for one in (*model.graph.input, *model.graph.output)}
    made.graph.output.extend(onnx.ValueInfoProto(name=value) for value in wanted if value not in public)
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString(deterministic=True))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), weights.held


class _Weights:
    """Says of each larger weight where onnxruntime finds it: in memory, as `held`, or in a file that it goes into."""

    def __init__(self, options: ort.SessionOptions, files: Mapping[str, bytes], file: IO[bytes]) -> None:
        self._options, self._files, self._file = options, files, file
        self.held: list[ort.OrtValue] = []
        self.largest = 0

    def place(self, tensor: onnx.TensorProto) -> onnx_format.Place | None:
        """Where a tensor's data lie; None if they are to stay in the model."""
        if tensor.data_type not in _MAPPED:
            return None
        array = onnx_format.array_of(tensor, self._files)
        if array.nbytes < INLINE_BYTES:
            return None
        if uses_external_data(tensor) and array.flags.aligned:
            self.held.append(ort.OrtValue.ortvalue_from_numpy(array))
            self._options.add_initializer(tensor.name, self.held[-1])
            self.largest = max(self.largest, array.nbytes)
            return ELSEWHERE, 0, array.nbytes
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT_BYTES))
        return WEIGHTS, self._file.tell(), self._file.write(np.ascontiguousarray(array).data)
