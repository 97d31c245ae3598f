"""The entries of a manifest's `preprocess` and `postprocess`: one struct a kind, told apart by the field `do`.

Before the model, each entry makes one of its inputs, a row of it from each instance:

    image   a picture, to [N, channels, height, width] or as `layout` says. In this order: decoded, turned as its EXIF
            orientation says, made `color` (what is transparent over `background`), fitted to `height` × `width`,
            inverted (255 − v), times `scale`, less `mean`, by `std` for each channel, in the input's own dtype
    table   a row of named cells, to [N, K]: the columns in their order, each as its own entry says
    text    a text, to token ids [N, length], by the `tokenizer.json` beside the model, `<file>.tokenizer.json`

After it, each entry takes what the one before it made of the same `output`; what it makes of a row is told here:

    softmax, sigmoid    as many numbers
    pool                [tokens, K] → [K], over the tokens that the input `mask` has 1 for, or of the first token
    normalize           the vector divided by its length (L2)
    argmax              {"index", "label"?, "score"}: the largest
    top-k               a list of the k largest, the largest first
    threshold           a list of those at or above `at`, in their order; of a single number, one of two: index 0 or 1
"""

from math import isfinite
from typing import Annotated, Literal

from msgspec import Meta, Struct

TOKENIZER_SUFFIX = ".tokenizer.json"  # of the file beside the model
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
FILTERS: tuple[Filter, ...] = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Side = Annotated[int, Meta(ge=1, le=16384, description="pixels")]
Byte = Annotated[int, Meta(ge=0, le=255)]
Labels = Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=100_000)]


class Image(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="image"):
    """A picture as one row of `input`; how it is fitted: `stretch`, or `crop` the middle of it, or `pad` it around.

    `crop` first makes the shorter side `shorter` pixels long, or as long as is needed; `pad` fills with `background`.
    """

    input: Name
    height: Side
    width: Side
    color: Literal["gray", "rgb"] = "rgb"
    background: Byte = 0
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    shorter: Side | None = None
    filter: Filter = "bilinear"
    invert: bool = False
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Annotated[
        Literal["nchw", "nhwc", "nhw", "flat"], Meta(description="flat: [N, height·width·channels], channels last")
    ] = "nchw"

    @property
    def channels(self) -> int:
        """Numbers of a pixel."""
        return 1 if self.color == "gray" else 3

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (0, self.channels):
                raise ValueError(f"{name}: {len(numbers)} numbers for {self.channels} channels")
        if 0 in self.std or not all(map(isfinite, (self.scale, *self.mean, *self.std))):
            raise ValueError("scale, mean or std: not a finite number, or a std of 0")
        if self.layout == "nhw" and self.channels != 1:
            raise ValueError("layout: nhw is for gray")
        if self.shorter is not None and (self.fit != "crop" or self.shorter < min(self.height, self.width)):
            raise ValueError("shorter: is for crop, and at least the shorter of height and width")


class Number(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="number"):
    """A cell that is a number: (v − mean) / std, or (v − min) / (max − min); `missing` stands for an empty one."""

    name: Name
    mean: float = 0.0
    std: float = 1.0
    min: float | None = None
    max: float | None = None
    missing: float | None = None

    def __post_init__(self) -> None:
        told = [one for one in (self.mean, self.std, self.min, self.max, self.missing) if one is not None]
        if not all(map(isfinite, told)) or self.std == 0:
            raise ValueError(f"column {self.name!r}: a number that is not finite, or a std of 0")
        if (self.min is None) != (self.max is None) or (self.min is not None and self.min == self.max):
            raise ValueError(f"column {self.name!r}: min and max go together, and differ")
        if self.min is not None and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(f"column {self.name!r}: mean and std, or min and max, not both")

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return 1


class Category(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="category"):
    """A cell that is one of `values`: its index, or one number for each value, 1 for its own and 0 for the others.

    `missing` stands for an empty cell. Any other value is refused, or with `others`, one-hot only, all zeros.
    """

    name: Name
    values: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100_000)]
    encode: Literal["one-hot", "index"] = "one-hot"
    missing: str | None = None
    others: bool = False

    def __post_init__(self) -> None:
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"column {self.name!r}: a value stands twice")
        if self.missing is not None and self.missing not in self.values:
            raise ValueError(f"column {self.name!r}: missing {self.missing!r} is none of its values")
        if self.others and self.encode == "index":
            raise ValueError(f"column {self.name!r}: others have no index; they are for one-hot")

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return len(self.values) if self.encode == "one-hot" else 1


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="table"):
    """A row of cells as one row of `input`."""

    input: Name
    columns: Annotated[tuple[Number | Category, ...], Meta(min_length=1, max_length=100_000)]

    @property
    def width(self) -> int:
        """K, how many numbers a row becomes."""
        return sum(one.width for one in self.columns)

    def __post_init__(self) -> None:
        if len({one.name for one in self.columns}) != len(self.columns):
            raise ValueError("columns: a name stands twice")


class Text(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="text"):
    """A text as one row of `input`, token ids; of `mask`, 1 for a token and 0 for padding; of `types`, its segment.

    Longer texts are cut to `max_length` tokens, special ones among them; shorter ones filled up with `pad_id`, to the
    longest of a request, or with `pad` of `max` always to `max_length`.
    """

    input: Name
    mask: Name | None = None
    types: Name | None = None
    max_length: Annotated[int, Meta(ge=1, le=1_000_000, description="tokens")] = 512
    pad: Literal["longest", "max"] = "longest"
    pad_id: Annotated[int, Meta(ge=0)] = 0


class Softmax(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="softmax"):
    """Shares that sum to 1, over the last axis."""

    output: Name


class Sigmoid(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="sigmoid"):
    """Each number by itself, between 0 and 1."""

    output: Name


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="pool"):
    """One vector [N, K] out of those of all tokens [N, tokens, K]: their mean, their maximum, or the first of them."""

    output: Name
    how: Literal["mean", "max", "first"] = "mean"
    mask: Annotated[str, Meta(min_length=1, max_length=1024, description="an input of the model")] | None = None


class Normalize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="normalize"):
    """Vectors of length 1 (L2), over the last axis; one of zeros stays."""

    output: Name


class Argmax(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="argmax"):
    """The largest, over the last axis; a number with its index and, where there are some, its label."""

    output: Name
    labels: Labels = ()


class TopK(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="top-k"):
    """The k largest, over the last axis."""

    output: Name
    k: Annotated[int, Meta(ge=1, le=100_000)]
    labels: Labels = ()


class Threshold(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="threshold"):
    """Those at or above `at`; of a single number, whether it is, as index 0 or 1 with the label of that index."""

    output: Name
    at: float = 0.5
    labels: Labels = ()

    def __post_init__(self) -> None:
        if not isfinite(self.at):
            raise ValueError("at: not a finite number")


Preprocess = Image | Table | Text
Postprocess = Softmax | Sigmoid | Pool | Normalize | Argmax | TopK | Threshold
