"""Cases of the operators that move numbers: shapes, joining, indexing, sequences, and tensors made from little."""

from gradients.case import Case, Held, whole

CASES = [
    Case("Identity", [(2, 3)]),
    Case("Reshape", [(2, 3, 2), whole([0, -1])]),
    Case("Reshape", [(2, 3), whole([3, 2])], opset=7),
    Case("Flatten", [(2, 3, 2)], {"axis": 2}),
    Case("Flatten", [(2, 3)], {"axis": 0}, opset=7),
    Case("Squeeze", [(1, 3, 1), whole([0])]),
    Case("Squeeze", [(1, 3, 1)]),
    Case("Squeeze", [(1, 3, 1)], {"axes": [2]}, opset=7),
    Case("Unsqueeze", [(3, 2), whole([0, -1])]),
    Case("Unsqueeze", [(3, 2)], {"axes": [1]}, opset=7),
    Case("Expand", [(3, 1), whole([2, 1, 4])]),
    Case("Transpose", [(2, 3, 2)]),
    Case("Transpose", [(2, 3, 2)], {"perm": [1, 0, 2]}),
    Case("DepthToSpace", [(1, 8, 2, 1)], {"blocksize": 2}),
    Case("DepthToSpace", [(1, 8, 2, 1)], {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [(1, 2, 4, 2)], {"blocksize": 2}),
    Case("SpaceToDepth", [(1, 2, 4, 2)], {"blocksize": 2, "mode": "CRD"}),
    Case("Concat", [(2, 3), (2, 1)], {"axis": -1}),
    Case("Split", [(5, 2)], {"num_outputs": 2}, outputs=2),
    Case("Split", [(5, 2), whole([2, 3])], outputs=2),
    Case("Split", [(2, 5)], {"axis": 1, "split": [1, 4]}, outputs=2, opset=7),
    Case("Split", [(4, 2)], outputs=2, opset=11),
    Case("Tile", [(2, 3), whole([2, 1])]),
    Case("Pad", [(2, 3), whole([0, 1, 1, -1])]),
    Case("Pad", [(2, 3), whole([1, 2]), Held(0.5), whole([-1])]),
    Case("Pad", [(4, 3)], {"mode": "reflect", "pads": [2, 0, 3, 1]}, opset=7),
    Case("Pad", [(2, 3), whole([1, 0, 2, 1])], {"mode": "edge"}),
    Case("Pad", [(2, 3), whole([1, 0, 2, 1])], {"mode": "wrap"}),
    Case("CenterCropPad", [(4, 2), whole([3, 5])]),
    Case("CenterCropPad", [(4, 3), whole([1])], {"axes": [-1]}),
    Case("ReverseSequence", [(4, 3), whole([1, 2, 4])]),
    Case("ReverseSequence", [(3, 4), whole([1, 2, 4])], {"batch_axis": 0, "time_axis": 1}),
    Case("Trilu", [(3, 4), whole(1)]),
    Case("Trilu", [(2, 3, 3)], {"upper": 0}),
    Case("OneHot", [whole([0, 2, -1]), whole(3), (2,)]),
    Case("Slice", [(4, 5), whole([1, -2]), whole([4, -4]), whole([0, -1]), whole([2, -1])]),
    Case("Slice", [(4, 5), whole([1]), whole([2**62]), whole([-1]), whole([3])]),
    Case("Slice", [(4, 5)], {"starts": [1, 0], "ends": [3, -1]}, opset=7),
    Case("Gather", [(4, 3), whole([[0, 2], [-1, 0]])]),
    Case("Gather", [(4, 3, 2), whole([[0, 2], [-1, 0]])], {"axis": 1}),
    Case("Gather", [(4, 3), whole(-2)], {"axis": 1}),
    Case("GatherElements", [(3, 3), whole([[0, -1, 1], [2, 0, 0]])]),
    Case("GatherND", [(3, 2, 2), whole([[0, 1], [-1, 0]])]),
    Case("GatherND", [(2, 3, 2), whole([[1], [2]])], {"batch_dims": 1}),
    Case("Scatter", [(3, 3), whole([[0, 2, 1]]), (1, 3)], opset=9),
    *[
        Case("ScatterElements", [(3, 3), whole([[0, 2, 1], [1, -1, 2]]), (2, 3)], {"reduction": kind})
        for kind in ("add", "mul", "max", "min")
    ],
    Case("ScatterElements", [(3, 3), whole([[0, 2]]), (1, 2)], {"axis": 1}),
    *[
        Case("ScatterND", [(4, 2), whole([[0], [-1], [0]]), (3, 2)], {"reduction": kind})
        for kind in ("add", "mul", "max", "min")
    ],
    Case("ScatterND", [(3, 2, 2), whole([[0, 1], [-1, 0]]), (2, 2)], opset=11),
    Case("TensorScatter", [(2, 1, 4, 2), (2, 1, 2, 2), whole([1, 2])]),
    Case("TensorScatter", [(2, 4, 2), (2, 2, 2), whole([3, 0])], {"mode": "circular"}),
    Case("SequenceConstruct", [(2,), (3, 1)]),
    Case("SequenceAt", [(2,), (3,), whole(-1)], gathered=2),
    Case("SequenceInsert", [(2,), (3,), (1, 2), whole(0)], gathered=2),
    Case("SequenceErase", [(2,), (3,), whole(0)], gathered=2),
    Case("SplitToSequence", [(5, 2), whole(2)]),
    Case("SplitToSequence", [(2, 3)], {"axis": 1, "keepdims": 0}),
    Case("ConcatFromSequence", [(2, 3), (2, 3)], {"axis": 1, "new_axis": 1}, gathered=2),
    Case("ConcatFromSequence", [(2, 3), (1, 3)], {"axis": 0}, gathered=2),
]

_MADE = "makes numbers from shapes or counts"
# Operator: why it has no gradient to check.
EXCEPTIONS = {
    **dict.fromkeys(("Shape", "Size", "SequenceLength", "SequenceEmpty", "ConstantOfShape", "EyeLike"), _MADE),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _MADE),
    "Range": "counts in steps that are read as numbers",
    "Constant": "becomes a weight, or is refused",
}
