"""Numbers of 4 or 8 bits in blocks with a scale each: how they are rounded, and how onnxruntime stores them.

A weight is taken as [K, N]: K numbers go into each of N sums, and every `block` of the K share a scale (and a zero
point): w = (number - zero) * scale. Numbers are stored without sign; where no zero point is stored it is half the
range, 8 or 128. The last block may be short.

MatMulNBits (onnxruntime, docs/ContribOperators.md) takes bytes [N, blocks, block * bits / 8], the lower half of a byte
first, the last block filled up; scales [N, blocks]; zero points as bytes [N, blocks * bits / 8 rounded up].
GatherBlockQuantized takes a table [rows, K] as bytes [rows, K * bits / 8] and the same scales and zero points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from modelctl.data.samples import Array

BITS = (4, 8)
BLOCKS = (32, 64, 128)


@dataclass(frozen=True)
class Coding:
    """Bits a number, numbers a block, and whether zero points are left out."""

    bits: int
    block: int
    symmetric: bool

    @property
    def top(self) -> int:
        """The largest number."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point where none is stored."""
        return 1 << (self.bits - 1)

    def blocks(self, rows: int) -> int:
        """How many blocks a column of `rows` numbers has."""
        return -(-rows // self.block)

    def size_bytes(self, rows: int, columns: int, scale_bytes: int, filled: bool) -> int:
        """What a weight [rows, columns] takes with its scales and zero points; `filled`: the last block is whole."""
        blocks = self.blocks(rows)
        held = blocks * self.block if filled else rows
        zeros = 0 if self.symmetric else math.ceil(blocks * self.bits / 8)
        return columns * (held * self.bits // 8 + blocks * scale_bytes + zeros)


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight in few bits: `numbers` uint8 [K, N]; `scale` floats and `zero` uint8, both [blocks, N]."""

    coding: Coding
    numbers: Array
    scale: Array
    zero: Array

    def values(self) -> Array:
        """The weight that is computed with, float32 [K, N]."""
        scale, zero = (np.repeat(one, self.coding.block, 0)[: len(self.numbers)] for one in (self.scale, self.zero))
        found: Array = (self.numbers.astype(np.float32) - zero) * scale.astype(np.float32)
        return found


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was done with a node's weight; `reason`: why it was left. Sizes are told at the first node that reads it.

    `node` is its name, or that of what it gives where it has none; `kind` the operator that it was.
    """

    node: str
    kind: str
    weight: str
    coding: Coding | None = None
    error: float = 0.0
    corrected: bool = False
    bytes_before: int = 0
    bytes_after: int = 0
    reason: str = ""


def decisions(nodes: Sequence[onnx.NodeProto], of_weight: Decision) -> list[Decision]:
    """What is decided of a weight, for each node that reads it."""
    told = [replace(of_weight, node=called(node), kind=node.op_type) for node in nodes]
    return [*told[:1], *(replace(one, bytes_before=0, bytes_after=0) for one in told[1:])]


def called(node: onnx.NodeProto) -> str:
    """A node's name, or that of what it gives."""
    return node.name or node.output[0]


def grid(values: Array, coding: Coding, kind: np.dtype[Any]) -> tuple[Array, Array]:
    """Scale (of type `kind`, as it will be stored) and zero point, [N] each, for one block of values [n, N].

    Symmetric: what is furthest from 0 becomes the lowest number, which has no counterpart above. Else the range,
    stretched to hold 0, is spread over all numbers.
    """
    if coding.symmetric:
        ends = np.take_along_axis(values, np.abs(values).argmax(0)[None], 0)[0]
        scale = -ends / coding.middle
        zero = np.full(scale.shape, coding.middle)
    else:
        low, high = np.minimum(values.min(0), 0), np.maximum(values.max(0), 0)
        scale = (high - low) / coding.top
        zero = np.rint(-low / np.where(scale == 0, 1, scale)).clip(0, coding.top)
    scale = scale.astype(kind)
    scale[scale == 0] = 1
    return scale, zero.astype(np.uint8)


def rounded(values: Array, scale: Array, zero: Array, coding: Coding) -> Array:
    """The nearest numbers, uint8, to values that scale and zero point are broadcast to."""
    found: Array = np.rint(values / scale.astype(values.dtype) + zero).clip(0, coding.top).astype(np.uint8)
    return found


def plainly(weight: Array, coding: Coding, kind: np.dtype[Any]) -> Coded:
    """A weight [K, N] with each number rounded to the nearest."""
    numbers = np.empty(weight.shape, np.uint8)
    scales, zeros = [], []
    for start in range(0, len(weight), coding.block):
        part = weight[start : start + coding.block]
        scale, zero = grid(part, coding, kind)
        numbers[start : start + coding.block] = rounded(part, scale, zero, coding)
        scales.append(scale)
        zeros.append(zero)
    return Coded(coding, numbers, np.stack(scales), np.stack(zeros))


def joined(numbers: Array, bits: int) -> Array:
    """Numbers uint8 [..., n] as bytes [..., n * bits / 8 rounded up], the lowest bits first."""
    if bits == 8:
        return np.ascontiguousarray(numbers)
    if numbers.shape[-1] % 2:
        numbers = np.concatenate((numbers, np.zeros_like(numbers[..., :1])), -1)
    found: Array = numbers[..., ::2] | (numbers[..., 1::2] << 4)
    return found


def parted(stored: Array, bits: int) -> Array:
    """Bytes [..., n] as the numbers in them, [..., n * 8 / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: Array = (stored[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return found.reshape(*stored.shape[:-1], -1)


def for_product(coded: Coded) -> tuple[Array, Array, Array | None]:
    """Numbers, scales and zero points (None where symmetric) as MatMulNBits takes them."""
    coding = coded.coding
    rows, columns = coded.numbers.shape
    whole = np.full((columns, coding.blocks(rows) * coding.block), 0, np.uint8)
    whole[:, :rows] = coded.numbers.T
    stored = joined(whole, coding.bits).reshape(columns, coding.blocks(rows), -1)
    return stored, np.ascontiguousarray(coded.scale.T), _zeros(coded)


def for_lookup(coded: Coded) -> tuple[Array, Array, Array | None]:
    """Table, scales and zero points (None where symmetric) as GatherBlockQuantized takes them."""
    return joined(coded.numbers.T, coded.coding.bits), np.ascontiguousarray(coded.scale.T), _zeros(coded)


def _zeros(coded: Coded) -> Array | None:
    return None if coded.coding.symmetric else joined(np.ascontiguousarray(coded.zero.T), coded.coding.bits)
