"""Operators that compute each number by itself, and those that summarize over axes."""

from modelctl.graph.channels.dims import Dim, freeze, product, unify
from modelctl.graph.channels.shapes import MICROSOFT
from modelctl.graph.channels.site import Axes, Outputs, Site, Unknown, broadcast, rule

_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu"),
    *("Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink"),
    *("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
_BINARY = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)


@rule(*_UNARY)
@rule("Gelu", "FastGelu", "QuickGelu", domain=MICROSOFT)
def unary(site: Site) -> Outputs:
    if site.has(1) and site.node.op_type == "FastGelu":  # with a bias
        return [broadcast([site.dims(0), site.dims(1)])]
    made = site.shapes.numbers.get(site.node.output[0])
    if site.node.op_type == "Cast" and made is not None and made.dtype.kind == "f" and not site.is_weight(0):
        site.notes.scales.append(site.index)
    return [site.dims(0)] * len(site.node.output)


@rule(*_BINARY)
@rule("BiasGelu", domain=MICROSOFT)
def binary(site: Site) -> Outputs:
    return [broadcast([site.dims(place) for place in range(len(site.node.input))])]


@rule("Shape", "Size")
def shape(site: Site) -> Outputs:
    return [site.fixed(site.sizes(), "are sizes told by")]


@rule("ConstantOfShape")
def constant_of_shape(site: Site) -> Outputs:
    axes = [Dim(size) for size in site.sizes()]
    site.follow(0, axes)
    return [axes]


@rule("Range")
def counted(site: Site) -> Outputs:
    return [site.fixed(site.sizes(), "are counted by")]


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(site: Site) -> Outputs:
    axes = site.dims(0)
    at = site.axis(-1 if site.opset >= 13 else 1)
    site.freeze(axes[at : at + 1] if site.opset >= 13 else axes[at:], "are weighed against each other by")
    return [axes]


@rule("ArgMax", "ArgMin", "CumSum", "TopK")
def ranked(site: Site) -> Outputs:
    axes = list(site.dims(0))
    if site.node.op_type == "CumSum":
        found = site.numbers(1)
        if not found:
            raise Unknown("computes its axis")
        site.freeze([axes[found[0]]], "are summed up in order by")
        return [axes]
    at = site.axis(-1 if site.node.op_type == "TopK" else 0)
    site.freeze([axes[at]], "are ranked by")
    if site.node.op_type == "TopK":
        axes[at : at + 1] = site.fixed([site.sizes()[at]])
        return [axes, axes]
    axes[at : at + 1] = [Dim(1)] if site.attribute("keepdims", 1) else []
    return [axes]


@rule(*(f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")))
@rule("ReduceSumSquare")
def reduced(site: Site) -> Outputs:
    """Sums and norms lose nothing with channels that are zero; a mean is another one; an extreme is not cut."""
    axes = list(site.dims(0))
    over = site.listed("axes", 1)
    if over is None and site.attribute("noop_with_empty_axes"):
        return [axes]
    gone = {one % len(axes) for one in over} if over else set(range(len(axes)))
    kind = site.node.op_type.removeprefix("Reduce")
    for place in gone:
        if kind == "Mean":
            site.summarize([axes[place]])
        elif kind not in ("Sum", "SumSquare", "L1", "L2"):
            freeze(axes[place], site.reason("are reduced by"))
    if site.attribute("keepdims", 1):
        return [[Dim(1) if place in gone else one for place, one in enumerate(axes)]]
    return [[one for place, one in enumerate(axes) if place not in gone]]


@rule("BatchNormalization")
def batch_norm(site: Site) -> Outputs:
    axes = site.dims(0)
    if len(axes) < 2:
        raise Unknown("normalizes a value without channels")
    for place in range(1, 5):
        (per_channel,) = site.dims(place)
        if place > 2:
            site.notes.running.add(per_channel)
        unify(per_channel, axes[1])
    return [axes, *([axes[1]] for _ in site.node.output[1:])]


@rule("InstanceNormalization")
def instance_norm(site: Site) -> Outputs:
    axes = site.dims(0)
    for place in (1, 2):
        unify(site.dims(place)[0], axes[1])
    site.summarize(axes[2:])
    return [axes]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@rule("SimplifiedLayerNormalization", domain=MICROSOFT)
def layer_norm(site: Site) -> Outputs:
    axes = site.dims(0)
    at = site.axis(-1)
    for place in (1, 2):
        if site.has(place):
            broadcast([axes[at:], site.dims(place)])
    site.summarize(axes[at:])
    told = [*axes[:at], *(Dim(1) for _ in axes[at:])]
    return [axes, told, told]


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(site: Site) -> Outputs:
    axes = broadcast([site.dims(place) for place in range(len(site.node.input)) if site.has(place)])
    site.summarize(axes[-1:])
    told: Axes = [*axes[:-1], Dim(1)]
    return [axes, told, told, axes]


@rule("GroupNormalization")
def group_norm(site: Site) -> Outputs:
    """Whole groups can go, or as many channels of each; a mean is taken over what a group has left."""
    axes = site.dims(0)
    count = int(site.attribute("num_groups", 1))
    if count < 1 or axes[1].size % count:
        raise Unknown("has groups of unequal size")
    groups, inner = Dim(count), Dim(axes[1].size // count)
    unify(axes[1], product([groups, inner]))
    for place in (1, 2):
        (scale,) = site.dims(place)
        unify(scale, groups if scale.size == count and site.opset < 21 else axes[1])
    site.summarize([inner])
    site.follow("num_groups", [groups])
    return [axes]


@rule("LpNormalization")
def lp_norm(site: Site) -> Outputs:
    return [site.dims(0)]


@rule("MeanVarianceNormalization")
def mean_variance_norm(site: Site) -> Outputs:
    axes = site.dims(0)
    site.summarize([axes[one] for one in site.attribute("axes", [0, 2, 3])])
    return [axes]


@rule("QuantizeLinear", "DequantizeLinear")
def quantized(site: Site) -> Outputs:
    """A scale for all, or one for each channel; blocks of several are not understood."""
    axes = site.dims(0)
    if site.attribute("block_size", 0):
        raise Unknown("has a scale for each block")
    for place in (1, 2):
        if site.has(place) and len(site.dims(place)) == 1 and site.dims(place)[0].size > 1:
            scale = site.dims(place)[0]
            site.notes.running.add(scale)
            unify(scale, axes[site.axis(1)])
    return [axes]


@rule("DynamicQuantizeLinear")
def dynamic_quantized(site: Site) -> Outputs:
    return [site.dims(0), [], []]
