"""A graph in eight bits, as onnxruntime.quantization makes it of ranges that are known: no sample is run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

from modelctl.graph.calibration import write_ranges
from modelctl.graph.chatter import hushed
from modelctl.graph.histograms import Range


def quantized(
    model: onnx.ModelProto, ranges: dict[str, Range], folder: Path, types: Sequence[str], excluded: Iterable[str] = ()
) -> onnx.ModelProto:
    """The model with the operators of these types in eight bits, but for the nodes `excluded`."""
    write_ranges(ranges, folder / "ranges.json")
    with hushed():
        ort_quantization.quantize_static(
            model,
            folder / "quantized.onnx",
            None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(types),
            nodes_to_exclude=list(excluded),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=folder / "ranges.json",
        )
    return onnx.load(folder / "quantized.onnx")
