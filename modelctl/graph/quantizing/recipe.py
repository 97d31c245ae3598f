"""How a graph is to be quantized: all of it in one value, so that it can be told, compared, and carried out again."""

from dataclasses import dataclass
from typing import Any

from modelctl.graph.weight_only import Form
from modelctl.options import Calibration, Method

INTEGER_METHODS = (Method.STATIC, Method.DYNAMIC)
HALVES = (Method.FLOAT16, Method.BFLOAT16)

# Operator types, the later sets with the earlier ones: what multiplies with weights; what hands integers on as they
# are; what has an integer kernel of its own, which pays in one net and costs in another.
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CHAINS = (
    *PRODUCTS,
    *("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
USUAL = (*CHAINS, "Add")  # gains in most convolutional nets, and is tried first
SUMS = (*CHAINS, "Add", "Concat", "GlobalAveragePool", "AveragePool")
ALL = (*SUMS, "Mul", "Sigmoid", "LeakyRelu", "Softmax", "Resize", "Split", "Pad", "Gather")
DYNAMIC = ("MatMul", "Gemm", "LSTM")
_SETS = {PRODUCTS: "products", CHAINS: "chains", USUAL: "usual", SUMS: "sums", ALL: "all"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to quantize a graph.

    `types` and `floats` (names of nodes to leave as they are) say what of it; `weight_bits` 7 leaves a bit of each int8
    weight unused, so that sums of two products fit in 16 bits where a processor has no instruction for eight; `smooth`
    moves outliers of activations into weights first; `gives_float`: what products of matrices give is not rounded;
    `form` is that of weights where activations stay in float, STORED or not for halves; `stores_rest`: weights that
    stay in float are stored in int8 all the same, and unpacked when the file is loaded.
    """

    method: Method
    types: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    calibration: Calibration = Calibration.MINMAX
    smooth: bool = False
    gives_float: bool = False
    form: Form = Form.STORED
    stores_rest: bool = False

    @property
    def name(self) -> str:
        """In a few words, for tables and pictures."""
        words = [str(self.method)]
        if self.bits != 8 and self.method not in HALVES:
            words.append(f"{self.bits} bits")
        if self.method is Method.STATIC:
            words += [_SETS[self.types]] if self.types in _SETS else []
            words += [] if self.calibration is Calibration.MINMAX else [str(self.calibration)]
            words += ["smoothed"] if self.smooth else []
            words += ["float between"] if self.gives_float else []
        if self.method in INTEGER_METHODS and self.weight_bits != 8:
            words.append(f"{self.weight_bits}-bit weights")
        if self.method is Method.WEIGHT_ONLY or (self.method in HALVES and self.form is Form.STORED):
            words.append(str(self.form))
        words += [f"{len(self.floats)} in float"] if self.floats else []
        return ", ".join([*words, *(["rest stored"] if self.stores_rest else [])])

    def facts(self) -> dict[str, Any]:
        """As the manifest remembers what was chosen."""
        told: dict[str, Any] = {"method": str(self.method), "bits": self.bits, "per_channel": self.per_channel}
        if self.method is Method.STATIC:
            told |= {"activations": "uint8", "calibration": str(self.calibration), "smooth": self.smooth}
            told |= {"gives_float": self.gives_float}
        if self.method is Method.DYNAMIC:
            told |= {"activations": "uint8"}
        if self.method in INTEGER_METHODS:
            told |= {"op_types": list(self.types), "float_nodes": list(self.floats), "weight_bits": self.weight_bits}
        if self.method not in INTEGER_METHODS:
            told |= {"form": str(self.form), "float_nodes": list(self.floats)}
        return told | {"stores_rest": self.stores_rest}
