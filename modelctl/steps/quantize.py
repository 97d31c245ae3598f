"""`quantize`: fewer bits for weights and activations, accepted only when loaded, run, scored and timed."""

from pathlib import Path
from typing import Any

import onnx

from modelctl.artifact import Artifact, Draft, Origin, Payload, create, format_of
from modelctl.data import Data, open_data
from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError, UsageError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, quantization, weight_only, weights
from modelctl.graph.prepare import pool_before_relu, prepare, products, small_convolutions
from modelctl.graph.session import Session
from modelctl.options import Method, QuantizeOptions
from modelctl.progress import Progress, silent

LIBRARIES = ("onnxruntime", "onnx", "onnxscript", "numpy")


def origin(model: Artifact, options: QuantizeOptions) -> Origin:
    """What the result is made from: the float model, and the samples to calibrate on."""
    onnx_format.refuse_other(model.manifest.format, model.path, "quantize")
    if options.method is Method.STATIC and options.data is None:
        raise UsageError("--method static needs samples to calibrate on", "add --data samples.npz")
    return Origin("quantize", options, (model,), libraries=LIBRARIES)


def quantize(model: Artifact, out: Path, options: QuantizeOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same model with weights in 8 bits, and activations too where the method is static or dynamic.

    Ranges come from the training part of the data, the figures from its test part. CheckFailed when the result is not
    what was asked for (`measure.judge`); UnsupportedError when the model is quantized already, or can't be.
    """
    made_from = origin(model, options)
    if format_of(out) != "onnx":
        raise UnsupportedError(f"{out}: quantize writes .onnx", f"-o {out.with_suffix('.onnx').name}")
    with create(out, made_from) as draft:
        payload = model.load()
        graph = _checked(onnx_format.parse(payload), model, options)
        session = Session(payload, options.thread_count())
        data = open_data(options.data, session.inputs, options.seed) if options.data else None
        trial = measure.trial_on(data, options)
        onnx_format.save(_lowered(graph, payload, session, data, options, draft, progress), draft.path)
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


def _lowered(
    graph: onnx.ModelProto,
    payload: Payload,
    session: Session,
    data: Data | None,
    options: QuantizeOptions,
    draft: Draft,
    progress: Progress,
) -> onnx.ModelProto:
    """The graph in fewer bits, one scale a channel where that works, known to load; what was chosen goes to `draft`."""
    method = options.method or (Method.WEIGHT_ONLY if data is None else Method.STATIC)
    ready = prepare(graph, session.name)
    if method is not Method.WEIGHT_ONLY:
        quantization.check(ready, session.name, method, options)
    for per_channel in (True, False) if options.per_channel else (False,):
        choices: dict[str, Any] = {"method": str(method), "per_channel": per_channel, "weights": "int8"}
        try:
            if method is Method.STATIC and data is not None:
                made, also = _static(ready, data, session, options, per_channel, draft.path.parent, progress)
                choices |= also
            elif method is Method.DYNAMIC:
                made = quantization.dynamic(ready, draft.path.parent, options, per_channel)
                choices["activations"] = "uint8"
            else:
                made = weight_only.quantize(ready, options, per_channel)
            Session(onnx_format.payload_of(made, payload))
        except (UnsupportedError, ArtifactError) as error:
            if not per_channel:
                raise _refused(session.name, error) from error
            progress.note(f"one scale a channel does not work here, trying one a tensor: {error.message}")
            continue
        if weights.is_quantized(made):
            break
        raise UnsupportedError(f"{session.name}: holds nothing that {method} could quantize", "add --op-type MatMul")
    draft.choices = choices
    return made


def _static(
    ready: onnx.ModelProto,
    data: Data,
    session: Session,
    options: QuantizeOptions,
    per_channel: bool,
    folder: Path,
    progress: Progress,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Weights and activations in 8 bits, but, unless types are named, not where that loses; and what was chosen."""
    small = [] if options.op_types else small_convolutions(ready)
    pool_before_relu(ready, small)
    in_float = small if options.op_types else [*small, *products(ready)]
    samples = data.train.take(options.samples, options.seed)
    made = quantization.static(
        ready, samples, session, folder, options, [*in_float, *options.excludes], per_channel, progress
    )
    return made, {"activations": "uint8", "float_nodes": in_float, "calibration_samples": len(samples)}


def _refused(name: str, error: UnsupportedError | ArtifactError) -> UnsupportedError | CheckFailed:
    if isinstance(error, UnsupportedError):
        return UnsupportedError(f"{name}: can't be quantized so: {error.message}", "--method weight-only")
    return CheckFailed(f"{name}: not accepted: the result can't be loaded: {error.message}")
