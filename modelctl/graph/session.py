"""Running ONNX: an onnxruntime session over verified bytes in memory, never over a path."""

import ctypes
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from modelctl.artifact import Payload
from modelctl.errors import ArtifactError, DataError, UnsupportedError
from modelctl.formats import functions
from modelctl.graph import providers
from modelctl.manifest import TensorSpec

Tensors = Mapping[str, np.ndarray[Any, Any]]

# onnxruntime's names of element types; every other one is numpy's.
_DTYPES = {"float": "float32", "double": "float64"}
_BFLOAT16 = 16  # onnx.proto, TensorProto.DataType
LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)
_PLACE = re.compile(r"\S+\.(?:h|cc):\d+ |onnxruntime::\S+\([^)]*\) ")  # of a check in onnxruntime's source

ort.set_default_logger_severity(4)  # what matters is raised; the rest is chatter


class Session:
    """A loaded model: what goes in, what comes out, and `run`."""

    def __init__(self, payload: Payload, threads: int = 1, provider: str = providers.CPU) -> None:
        """Load a payload, to be run on a provider of `graph.providers`.

        ArtifactError if it is no model that can be run, UnsupportedError if a kernel or the provider is missing.
        """
        name = payload.manifest.files[0].path
        wanted = providers.resolve(provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        _refuse_hostile(payload)
        beside = {path: data for path, data in payload.files.items() if path != name}
        if beside:
            sizes = [len(data) for data in beside.values()]
            options.add_external_initializers_from_files_in_memory(list(beside), list(beside.values()), sizes)
        if len(wanted) > 1:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            # Without its fallback, which prints, and goes on with the CPU where a provider fails.
            self._session = ort.InferenceSession(
                payload.primary, options, list(wanted), providers.settings(wanted, threads), enable_fallback=0
            )
        except ort_errors.NotImplemented as error:
            raise UnsupportedError(f"{name}: onnxruntime has no kernel for it: {reason(error)}") from error
        except LOAD_ERRORS as error:
            raise ArtifactError(f"{name}: onnxruntime can't load it: {reason(error)}") from error
        if len(wanted) > 1:
            providers.check_running(self._session, wanted[0], name)
        self.name = name
        self.provider = providers.short(wanted[0])
        self.inputs = tuple(_spec(one) for one in self._session.get_inputs())
        self.outputs = tuple(_spec(one) for one in self._session.get_outputs())
        self._names = [one.name for one in self.outputs]
        self._has_bfloat16 = any(one.dtype == "bfloat16" for one in (*self.inputs, *self.outputs))

    def run(self, feeds: Tensors) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name for inputs by name; DataError when they are not what the model takes."""
        try:
            answers = self._run_values(feeds) if self._has_bfloat16 else self._session.run(self._names, dict(feeds))
            return dict(zip(self._names, answers, strict=True))
        except (ort_errors.InvalidArgument, ValueError) as error:
            raise DataError(f"{self.name}: can't take this input: {reason(error)}") from error
        except (ort_errors.Fail, ort_errors.RuntimeException) as error:
            raise DataError(f"{self.name}: failed on this input: {reason(error)}") from error

    def _run_values(self, feeds: Tensors) -> list[np.ndarray[Any, Any]]:
        """As `run`, by way of onnxruntime's own tensors: its bridge to numpy does not know bfloat16."""
        given = {name: _value_of(np.require(array, requirements="C")) for name, array in feeds.items()}
        return [_array_of(value) for value in self._session.run_with_ort_values(self._names, given)]


def _value_of(array: np.ndarray[Any, Any]) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array_of(value: ort.OrtValue) -> np.ndarray[Any, Any]:
    if value.element_type() != _BFLOAT16:
        found: np.ndarray[Any, Any] = value.numpy()
        return found
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    return np.frombuffer(raw, dtype=ml_dtypes.bfloat16).reshape(shape)


def _refuse_hostile(payload: Payload) -> None:
    """onnxruntime would open any file that a model names as its weights, and unfold its functions without measure."""
    if b"location" not in payload.primary and not functions.present(payload.primary):
        return
    from modelctl.formats import onnx as onnx_format

    name = payload.manifest.files[0].path
    for tensor in onnx_format.external_tensors(onnx_format.parse_bytes(payload.primary, name)):
        location, _, _ = onnx_format.place_of(tensor)
        if location not in payload.files:
            hint = f"modelctl export {name} -o model.onnx"
            raise ArtifactError(f"{name}: keeps weights in {location!r}, which its manifest does not list", hint)


def _spec(one: Any) -> TensorSpec:
    """An input or output as the manifest describes it; a free dimension without a name is called after its place."""
    inner = one.type.removeprefix("tensor(").removesuffix(")")
    if inner == one.type:
        raise UnsupportedError(f"{one.name}: is a {one.type}, and only tensors can be run")
    shape = tuple(size if isinstance(size, int) else size or f"dim{axis}" for axis, size in enumerate(one.shape))
    return TensorSpec(name=one.name, dtype=_DTYPES.get(inner, inner), shape=shape)


def reason(error: Exception) -> str:
    """What onnxruntime says, in one line, without its code and the place in its source."""
    text = str(error).removeprefix("[ONNXRuntimeError] : ")
    parts = text.split(" : ")
    said = " : ".join(parts[2:]) if len(parts) > 2 else text
    return " ".join(_PLACE.sub("", said.rpartition("Status Message: ")[2]).split()).rstrip(".")[:300]
