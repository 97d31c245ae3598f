"""Cases of the operators that treat every number by itself: arithmetic, functions, activations, changes of type."""

import onnx

from gradients.case import Case, Held, between, positive, spread

CASES = [
    Case("Add", [(2, 3), (3,)]),
    Case("Sub", [(2, 3), (2, 1)]),
    Case("Mul", [(2, 3), (4, 1, 3)]),
    Case("Div", [(2, 3), positive(3)], opset=7),
    Case("Neg", [(3,)]),
    Case("Abs", [spread(6)]),
    Case("Reciprocal", [positive(4)]),
    Case("Pow", [positive(2, 3), (3,)]),
    Case("Pow", [spread(5), Held(3.0)], opset=7),
    Case("Mod", [between(0.2, 0.8, 4), between(1.1, 1.9, 4)], {"fmod": 1}),
    Case("Mod", [between(2.2, 2.8, 4), Held([1.0, 1.0, 1.0, 1.0])]),
    Case("Sum", [(2, 3), (3,), (2, 1)]),
    Case("Mean", [(2, 3), (3,), (1,)], opset=8),
    Case("Min", [spread(2, 3), between(-0.1, 0.1, 3)]),
    Case("Max", [spread(2, 3), between(-0.1, 0.1, 3), between(0.2, 0.25, 1)]),
    Case("Max", [(2, 2)]),
    Case("Clip", [spread(8), Held(-1.0), Held(1.0)]),
    Case("Clip", [spread(8), None, Held(1.0)]),
    Case("Clip", [spread(8)], {"min": -1.0, "max": 1.0}, opset=7),
    Case("Clip", [spread(8), between(-1, -0.9), between(0.9, 1)]),
    *[
        Case(name, [(2, 3)])
        for name in ("Exp", "Erf", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Sigmoid")
    ],
    *[Case(name, [between(-0.8, 0.8, 5)]) for name in ("Tan", "Asin", "Acos", "Atanh")],
    *[Case(name, [positive(4)]) for name in ("Log", "Sqrt")],
    Case("Acosh", [between(1.5, 3, 4)]),
    *[Case(name, [spread(6)]) for name in ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSwish", "ThresholdedRelu")],
    *[Case(name, [(6,)]) for name in ("Softplus", "Softsign", "Mish", "Gelu", "Swish")],
    Case("LeakyRelu", [spread(4)], {"alpha": 0.3}),
    Case("Elu", [spread(6)], {"alpha": 2.0}),
    Case("Selu", [spread(6)], {"alpha": 2.0, "gamma": 3.0}),
    Case("Celu", [spread(6)], {"alpha": 0.5}),
    Case("PRelu", [spread(2, 3, 2), positive(3, 1)]),
    Case("PRelu", [spread(2, 3), positive(1)]),
    Case("HardSigmoid", [spread(6)]),
    Case("HardSigmoid", [spread(6)], {"alpha": 1 / 6, "beta": 0.5}),
    Case("ThresholdedRelu", [spread(6)], {"alpha": 0.5}),
    Case("Shrink", [spread(6)], {"lambd": 1.0, "bias": 0.5}),
    Case("Gelu", [(6,)], {"approximate": "tanh"}),
    Case("Swish", [(6,)], {"alpha": 1.7}),
    Case("SwiGLU", [(2, 3), (2, 3)], {"alpha": 0.5}),
    Case("Softmax", [(2, 3, 2)]),
    Case("Softmax", [(2, 3, 2)], {"axis": 1}, opset=12),
    Case("LogSoftmax", [(2, 3)], {"axis": 0}),
    Case("LogSoftmax", [(2, 3, 2)], opset=7),
    Case("Dropout", [(2, 3)]),
    Case("Dropout", [(4, 5)], training=True, seeded=True),
    Case("Dropout", [(4, 5), Held(0.3), Held(True)], seeded=True),
    Case("Dropout", [(4, 5)], {"ratio": 0.3}, training=True, seeded=True, opset=7),
    Case("Where", [Held([True, False, True]), (2, 3), (3,)]),
    Case("Cast", [(3,)], {"to": onnx.TensorProto.DOUBLE}),
    Case("CastLike", [(3,), Held([1.0])]),
]

_COMPARED = "its answer is true or false"
_WHOLE = "is of whole numbers"
_STEPS = "is flat but for its steps"
# Operator: why it has no gradient to check.
EXCEPTIONS = {
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf"), _COMPARED),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), _COMPARED),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"), _WHOLE),
    **dict.fromkeys(("Ceil", "Floor", "Round", "Sign", "Hardmax"), _STEPS),
    "BitCast": "is about bits",
}
