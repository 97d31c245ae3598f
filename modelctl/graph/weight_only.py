"""Weights in 4 or 8 bits, activations in float: one door to the forms that such a model can have.

Which form is best depends on the processor and on how much goes through a product at a time, so that none is chosen
here: a search times them. On a processor with AVX2 alone, the products of a sentence encoder ran no slower stored than
in float, and in blocks of eight bits always slower.
"""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

import onnx

from modelctl.errors import UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph import blockwise, clean, unpacking
from modelctl.graph.blocks import Decision
from modelctl.graph.blockwise import LIMIT_BYTES, Packing
from modelctl.graph.unpacking import OPSET_OF_4_BITS, TYPES
from modelctl.graph.watching import Batches


class Form(StrEnum):
    """What becomes of a weight when a file is loaded."""

    STORED = "stored"
    """It is unpacked into floats: as fast as before, and as large in memory. Weights of all types."""
    BLOCKS = "blocks"
    """It is multiplied with as it is, in float. MatMul, Gemm and Gather; others are stored."""
    INTEGERS = "integers"
    """The same, but activations are rounded to 8 bits on the way into a product."""


def quantize(
    model: onnx.ModelProto,
    name: str,
    *,
    bits: int = 8,
    form: Form = Form.STORED,
    types: Collection[str] = TYPES,
    excluded: Collection[str] = (),
    per_channel: bool = True,
    block: int | None = None,
    max_error: float | None = None,
    batches: Batches | None = None,
    threads: int = 1,
    limit_bytes: int = LIMIT_BYTES,
) -> tuple[onnx.ModelProto, list[Decision]]:
    """A copy of `model`, called `name`, with weights in 4 or 8 bits, and what was done with the weight of each node.

    A weight stays in float where a node reads it that is of none of `types` or is `excluded` by name, or where its
    relative error would be above `max_error`. `block` is how many numbers share a scale: by default 32 where they have
    four bits, and what gives the smallest file where they have eight, or `max_error` says what is good enough;
    `per_channel` is for what is stored in eight bits. Rounding to four bits, or in blocks, is corrected on what
    `batches` bring, all of them anew each time they are called: as seldom as moments within `limit_bytes` allow.
    Weights of convolutions are stored in 8 bits where the opset can't be raised to the one that knows four. DataError
    for samples that don't fit; UsageError for other bits or blocks.
    """
    packing = Packing(
        bits=bits,
        block=_block(bits, block, max_error) if form is not Form.STORED else None,
        max_error=max_error,
        accuracy_level=4 if form is Form.INTEGERS else 0,
        types=[one for one in types if one in blockwise.TYPES] if form is not Form.STORED else (),
        exclude=excluded,
    )
    copy, stored_bits = _ready(model, name, packing, types)
    like = onnx_format.undescribed({Path(name).name: b""})
    told: list[Decision] = []
    if form is not Form.STORED:
        if batches is None:
            told = blockwise.pack(copy, packing)
        else:
            told = blockwise.pack_learning(copy, packing, like, batches, threads, limit_bytes)
    stored = unpacking.store(
        copy,
        stored_bits,
        like,
        types=types,
        excluded=excluded,
        per_channel=per_channel,
        block=block or unpacking.BLOCK,
        max_error=max_error,
        batches=batches,
        threads=threads,
        limit_bytes=limit_bytes,
    )
    return copy, [*(one for one in told if one.coding), *stored]


def _block(bits: int, block: int | None, max_error: float | None) -> int | None:
    """How many numbers share a scale in a kernel; None: as many as give the smallest file within the error."""
    return unpacking.BLOCK if block is None and bits == 4 and max_error is None else block


def _ready(model: onnx.ModelProto, name: str, packing: Packing, types: Collection[str]) -> tuple[onnx.ModelProto, int]:
    """A copy in which weights can be stored in as many bits as asked for, and in how many they can be."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if packing.bits == 8:
        return copy, 8
    rest = {one.name for one in unpacking.storable(copy, types, packing.exclude)} - blockwise.packable(copy, packing)
    opset = next((one.version for one in copy.opset_import if one.domain in ("", "ai.onnx")), 0)
    if not rest or opset >= OPSET_OF_4_BITS:
        return copy, 4
    try:
        return clean.raised(copy, OPSET_OF_4_BITS, name), 4
    except UnsupportedError:
        return copy, 8
