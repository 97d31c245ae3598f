"""What a knob may be turned to, where that is one of a few words."""

from enum import StrEnum


class Method(StrEnum):
    """How `quantize` lowers the number of bits; auto: what a search finds to do best."""

    AUTO = "auto"
    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FIXED_POINT = "fixed-point"
    QAT = "qat"


class Goal(StrEnum):
    """What `quantize` makes the most of within the budget: the fastest file, the smallest, or speed times smallness."""

    LATENCY = "latency"
    SIZE = "size"
    BOTH = "both"


class Calibration(StrEnum):
    """How static quantization finds the range of an activation."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"
    MSE = "mse"


class PruneMethod(StrEnum):
    """What `prune` takes away: single weights, whole channels, whole layers; l1-scale takes only their scale."""

    MAGNITUDE = "magnitude"
    THRESHOLD = "threshold"
    KEEP = "keep"
    N_M = "n:m"
    CHANNEL = "channel"
    LAYER = "layer"
    L1_SCALE = "l1-scale"


class Importance(StrEnum):
    """What tells the channels that count: their weights, the loss's gradient on them, or what they answer."""

    MAGNITUDE = "magnitude"
    TAYLOR = "taylor"
    ACTIVATION = "activation"


class PruneSchedule(StrEnum):
    """Whether `prune` takes all away at once or in rounds."""

    ONE_SHOT = "one-shot"
    ITERATIVE = "iterative"


class Scope(StrEnum):
    """Over what `prune` ranks the weights: all of them together, or each tensor by itself."""

    GLOBAL = "global"
    LAYER = "layer"


class KeyType(StrEnum):
    """What `keygen` makes: recipients' key pairs, a shared secret, signing keys, or what a client of a server shows."""

    RSA = "rsa"
    AES = "aes"
    ED25519 = "ed25519"
    API = "api"


class May(StrEnum):
    """What a client of a server may do beside asking models: load and unload them, see what is counted."""

    LOAD = "load"
    METRICS = "metrics"


class Optimizer(StrEnum):
    """How weights follow their gradients."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"


class Schedule(StrEnum):
    """The course of the learning rate."""

    ONE_CYCLE = "one-cycle"
    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Loss(StrEnum):
    """How far answers are from labels."""

    AUTO = "auto"
    CROSS_ENTROPY = "cross-entropy"
    BCE = "bce"
    MSE = "mse"
    L1 = "l1"


class Precision(StrEnum):
    """In which numbers a training computes; weights and what sums them up stay in the graph's own."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where a training computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Metric(StrEnum):
    """How `eval` scores answers against labels."""

    AUTO = "auto"
    TOP1 = "top1"
    TOP5 = "top5"
    F1 = "f1"
    RMSE = "rmse"
