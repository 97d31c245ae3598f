"""`quantize`: fewer bits for weights and activations, accepted only when loaded, run, scored and timed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from modelctl.artifact import Artifact, Payload
from modelctl.data import Data, open_data
from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError, UsageError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, quantization, weight_only, weights
from modelctl.graph.prepare import pool_before_relu, prepare, products, small_convolutions
from modelctl.graph.session import Session
from modelctl.making import Origin, create
from modelctl.options import Method, QuantizeOptions
from modelctl.progress import Progress, silent

LIBRARIES = ("onnxruntime", "onnx", "onnxscript", "numpy")


def origin(model: Artifact, options: QuantizeOptions) -> Origin:
    """What the result is made from: the float model, and the samples to calibrate on.

    UnsupportedError for what is not onnx, UsageError for a method that lacks its samples.
    """
    onnx_format.refuse_other(model.manifest, model.path, "quantize")
    if options.method is Method.STATIC and options.data is None:
        raise UsageError("--method static needs samples to calibrate on", "add --data samples.npz")
    return Origin("quantize", options, (model,), libraries=LIBRARIES)


def quantize(model: Artifact, out: Path, options: QuantizeOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same model with weights in 8 bits, and activations too where the method is static or dynamic.

    Ranges come from the training part of the data, the figures from its test part. CheckFailed when the result is not
    what was asked for (`measure.judge`); UnsupportedError when the model is quantized already, or can't be; UsageError
    for a node to exclude that is not there; DataError for samples that don't fit.
    """
    made_from = origin(model, options)
    onnx_format.refuse_other_out(out, "quantize")
    with create(out, made_from) as draft:
        payload = model.load()
        graph = _checked(onnx_format.parse(payload), model, options)
        session = Session(payload, options.thread_count())
        data = open_data(options.data, session.inputs, options.seed) if options.data else None
        trial = measure.trial_on(data, options)
        work = _Work(
            payload=payload, session=session, data=data, options=options, folder=draft.path.parent, progress=progress
        )
        made, draft.choices = work.run(graph)
        onnx_format.keep_packed(made, payload)
        onnx_format.save(made, draft.path)
        draft.inputs, draft.outputs = draft.inputs or session.inputs, draft.outputs or session.outputs
        draft.metrics = measure.compare(payload, onnx_format.written(draft.path), trial, progress)
        if data is None:
            progress.note(
                "without --data only size and speed are compared, on random inputs; the accuracy is not known"
            )
        measure.judge(str(out), draft.metrics, options)
    return Artifact.open(out)


def _checked(graph: onnx.ModelProto, model: Artifact, options: QuantizeOptions) -> onnx.ModelProto:
    if weights.is_quantized(graph):
        raise UnsupportedError(f"{model.path}: is quantized already; quantize the float model that it was made from")
    if graph.ByteSize() > onnx_format.INLINE_LIMIT_BYTES:
        raise UnsupportedError(f"{model.path}: holds more than {onnx_format.INLINE_LIMIT_BYTES} bytes of weights")
    names = {node.name for node in weights.nodes_of(graph.graph)}
    for name in options.excludes:
        if name not in names:
            raise UsageError(f"--exclude {name}: {model.path} has no node of that name")
    return graph


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A float graph and what is needed to quantize it; what must be written in between goes below `folder`."""

    payload: Payload
    session: Session
    data: Data | None
    options: QuantizeOptions
    folder: Path
    progress: Progress

    def run(self, graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The graph in fewer bits, known to load, with one scale a channel where that works; and what was chosen."""
        method = self.options.method or (Method.WEIGHT_ONLY if self.data is None else Method.STATIC)
        ready = prepare(graph, self.session.name)
        if method is not Method.WEIGHT_ONLY:
            quantization.check(ready, self.session.name, method, self.options)
        choices: dict[str, Any] = {"method": str(method), "weights": "int8"}
        if method is Method.STATIC and not self.options.op_types:
            small = small_convolutions(ready)
            pool_before_relu(ready, small)
            choices["float_nodes"] = [*small, *products(ready)]
        for per_channel in (True, False) if self.options.per_channel else (False,):
            try:
                made, chosen = self._tried(ready, method, per_channel, choices)
                break
            except (UnsupportedError, ArtifactError) as error:
                if not per_channel:
                    raise _refused(self.session.name, error) from error
                self.progress.note(f"one scale a channel does not work here, trying one a tensor: {error.message}")
        if not weights.is_quantized(made):
            raise UnsupportedError(f"{self.session.name}: holds nothing that {method} could quantize")
        return made, chosen

    def _tried(
        self, ready: onnx.ModelProto, method: Method, per_channel: bool, choices: dict[str, Any]
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        if method is Method.STATIC and self.data is not None:
            samples = self.data.train.take(self.options.samples, self.options.seed)
            excluded = [*choices.get("float_nodes", ()), *self.options.excludes]
            made = quantization.static(
                ready, samples, self.session, self.folder, self.options, excluded, per_channel, self.progress
            )
            choices = choices | {"activations": "uint8", "calibration_samples": len(samples)}
        elif method is Method.DYNAMIC:
            made = quantization.dynamic(ready, self.folder, self.options, per_channel)
            choices = choices | {"activations": "uint8"}
        else:
            made = weight_only.quantize(ready, self.options, per_channel)
        Session(onnx_format.payload_of(made, self.payload))
        return made, choices | {"per_channel": per_channel}


def _refused(name: str, error: UnsupportedError | ArtifactError) -> UnsupportedError | CheckFailed:
    if isinstance(error, UnsupportedError):
        return UnsupportedError(f"{name}: can't be quantized so: {error.message}")
    return CheckFailed(f"{name}: not accepted: the result can't be loaded: {error.message}")
