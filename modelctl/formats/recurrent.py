"""LSTM and GRU at any length: kept whole while torch traces, and written as ONNX's own operators.

torch.export takes the operators of `torch.nn.LSTM` and `torch.nn.GRU` apart step by step, which fixes the number of
steps. So while a module is traced they are called through operators of our own, which torch can't take apart, and which
onnxscript's translations of the original ones are then asked to write. Packed sequences, projections and inputs without
a batch go the usual way.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnxscript.function_libs.torch_lib.ops import core
from torch import Tensor
from torch.nn.modules import rnn

_FUNCTIONS: Any = vars(rnn)["_VF"]  # what the layers call


@torch.library.custom_op("modelctl::lstm", mutates_args=())
def _lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.lstm(input, list(hx), list(params), has_biases, num_layers, dropout, train, bidirectional, batch_first)


@torch.library.custom_op("modelctl::gru", mutates_args=())
def _gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    return torch.gru(input, hx, list(params), has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _answer(given: Tensor, state: Tensor, bidirectional: bool) -> Tensor:
    """An empty tensor [steps, batch, hidden] of what comes out, axes in the order of `given`."""
    return given.new_empty((*given.shape[:-1], state.shape[-1] * (2 if bidirectional else 1)))


@_lstm.register_fake
def _(input: Tensor, hx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _answer(input, hx[0], rest[5]), torch.empty_like(hx[0]), torch.empty_like(hx[1])


@_gru.register_fake
def _(input: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _answer(input, hx, rest[5]), torch.empty_like(hx)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How onnxscript writes the operators of this module."""
    return {torch.ops.modelctl.lstm.default: core.aten_lstm, torch.ops.modelctl.gru.default: core.aten_gru}


@contextlib.contextmanager
def kept_whole() -> Iterator[None]:
    """A block in which recurrent layers are traced as one operator each."""
    before = _FUNCTIONS.lstm, _FUNCTIONS.gru

    def lstm(*args: Any) -> Any:
        whole = _is_plain(args) and args[1][0].shape == args[1][1].shape
        return torch.ops.modelctl.lstm(*args) if whole else before[0](*args)

    def gru(*args: Any) -> Any:
        return torch.ops.modelctl.gru(*args) if _is_plain(args) else before[1](*args)

    _FUNCTIONS.lstm, _FUNCTIONS.gru = lstm, gru
    try:
        yield
    finally:
        _FUNCTIONS.lstm, _FUNCTIONS.gru = before


def _is_plain(args: Sequence[Any]) -> bool:
    """Whether a layer was called with a batch of sequences of one length: weights stand third, not fourth."""
    return isinstance(args[2], list | tuple) and args[0].ndim == 3
