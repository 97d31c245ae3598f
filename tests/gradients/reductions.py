"""Cases of reductions, of what picks numbers by their value, and of losses."""

from gradients.case import Case, Held, positive, spread, whole

CASES = [
    *[
        Case(f"Reduce{name}", [spread(2, 3, 2), whole([0, -1])], {"keepdims": 0})
        for name in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
    ],
    *[
        Case(f"Reduce{name}", [positive(2, 3)], {"axes": [1]}, opset=11)
        for name in ("Sum", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    ],
    Case("ReduceSum", [(2, 3)]),
    Case("ReduceProd", [spread(2, 3)]),
    Case("ReduceLogSumExp", [(2, 3)], {"noop_with_empty_axes": 1}),
    Case("CumSum", [(2, 3), whole(1)], {"exclusive": 1, "reverse": 1}),
    Case("CumSum", [(2, 3), whole(0)]),
    Case("CumProd", [spread(2, 3), whole(-1)], {"exclusive": 1}),
    Case("CumProd", [spread(2, 3), whole(0)], {"reverse": 1}),
    Case("TopK", [spread(2, 5), whole([3])], outputs=2),
    Case("TopK", [spread(2, 5)], {"k": 2, "axis": 0}, outputs=2, opset=7),
    Case("Unique", [spread(6)], outputs=4),
    Case("Unique", [spread(3, 2)], {"axis": 0, "sorted": 0}),
    Case("Compress", [(3, 4), Held([True, False, True])], {"axis": 0}),
    Case("Compress", [(2, 2), Held([True, False, False, True])]),
    Case("Det", [(2, 3, 3)]),
    Case("NegativeLogLikelihoodLoss", [(3, 4), whole([0, 2, 3]), Held([1.0, 0.5, 2.0, 3.0])]),
    Case("NegativeLogLikelihoodLoss", [(2, 3, 2), whole([[0, 2], [1, 1]])], {"reduction": "none", "ignore_index": 1}),
    Case("SoftmaxCrossEntropyLoss", [(3, 4), whole([0, 2, 3])], outputs=2),
    Case("SoftmaxCrossEntropyLoss", [(2, 3, 2), whole([[0, 2], [1, 1]])], {"reduction": "sum", "ignore_index": 1}),
]

# Operator: why it has no gradient to check.
EXCEPTIONS = dict.fromkeys(("ArgMax", "ArgMin", "NonZero"), "its answer is places")
