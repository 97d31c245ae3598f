"""`prune`: weights of least magnitude set to zero, by share, threshold or number, and scored before and after."""

from pathlib import Path

import numpy as np
from onnx import numpy_helper

from modelctl.artifact import Artifact
from modelctl.data import open_data
from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, sparsity, weights
from modelctl.graph.session import Session
from modelctl.making import Origin, create
from modelctl.options import PruneOptions, Scope
from modelctl.progress import Progress, silent

LIBRARIES = ("onnx", "numpy")


def origin(model: Artifact, options: PruneOptions) -> Origin:
    """What the result is made from: the model; the samples only judge it. UnsupportedError for what is not onnx."""
    onnx_format.refuse_other(model.manifest, model.path, "prune")
    return Origin("prune", options, (model,), libraries=LIBRARIES)


def prune(model: Artifact, out: Path, options: PruneOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same graph with the weights that count least set to zero, over all tensors of rank ≥ 2.

    CheckFailed when the test part of the data shows a larger loss than allowed; UnsupportedError when there is nothing
    to prune, ArtifactError for weights that are no numbers, DataError for samples that don't fit. Zeros change neither
    the size of a plain file nor its speed, and the step says so; a fine-tuning or a compressor may make use of them.
    """
    made_from = origin(model, options)
    onnx_format.refuse_other_out(out, "prune")
    with create(out, made_from) as draft:
        payload = model.load()
        graph = onnx_format.parse(payload)
        tensors = weights.prunable(graph)
        if not tensors:
            quantized = "is quantized; prune the float model" if weights.is_quantized(graph) else "nothing to prune"
            raise UnsupportedError(f"{model.path}: has no float weights of rank 2 or more: {quantized}")
        for tensor in tensors:
            if not np.isfinite(numpy_helper.to_array(tensor)).all():
                raise ArtifactError(f"{model.path}: weight {tensor.name!r} holds NaN or infinity")
        session = Session(payload, options.thread_count())
        data = open_data(options.data, session.inputs, options.seed) if options.data else None
        trial = measure.trial_on(data, options)
        found = sparsity.apply(tensors, sparsity.masks(tensors, _rule(options), sparsity.summed_axes(graph)))
        onnx_format.save(graph, draft.path)
        draft.inputs, draft.outputs = draft.inputs or session.inputs, draft.outputs or session.outputs
        draft.metrics = measure.compare(payload, onnx_format.written(draft.path), trial, progress)
        draft.metrics["pruned"] = found
        zeroed, speed = found["weights"] - found["kept"], draft.metrics["latency"]["speedup"]["value"]
        progress.note(
            f"{zeroed:.0f} of {found['weights']:.0f} weights are zero now; a plain file is no smaller for it"
            f" (size ×{draft.metrics['size_ratio']:g}) and runs no faster (speed ×{speed:.2f})"
        )
        measure.judge(str(out), draft.metrics, options, same_graph=True)
    return Artifact.open(out)


def _rule(options: PruneOptions) -> sparsity.Rule:
    return sparsity.Rule(
        sparsity=options.sparsity,
        threshold=options.threshold,
        keep=options.keep,
        pattern=options.kept_of_neighbours() if options.pattern else None,
        each=options.scope is Scope.LAYER,
    )
