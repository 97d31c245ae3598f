"""Trained weights as people keep them: torch's own files and safetensors, read without running anything in them.

A torch checkpoint is a zip that holds a pickle and the tensors' bytes. The pickle is looked through before it is read,
and read by torch's unpickler that builds tensors and nothing else (`weights_only`), unless the user says otherwise.
"""

import io
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.factory import AuthorsCode
from modelctl.formats import pickles
from modelctl.formats.program import quiet

StateDict = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
SHOWN = 3
SPREAD_BYTES = 1 << 26  # what a tensor that repeats its elements may be once it is spread out
# What torch's unpickler is seen to raise on damaged bytes.
_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError, AttributeError),
    *(AssertionError, struct.error, MemoryError, OverflowError, ImportError),
)


def read(weights: Artifact, unsafe: bool = False) -> StateDict:
    """The state dict in a `.pt`, `.pth` or `.safetensors` file; ArtifactError when there is none, or it holds NaN.

    A pickle that names anything but what tensors are built of is refused, unless `unsafe`.
    """
    data = weights.load().primary
    name = str(weights.path)
    if not data:
        raise ArtifactError(f"{name}: is empty")
    if weights.manifest.format == "safetensors":
        try:
            found: Any = load_safetensors(data)
        except SafetensorError as error:
            raise ArtifactError(f"{name}: not a safetensors file, or cut short: {error}") from error
        except KeyError as error:
            raise ArtifactError(f"{name}: holds {error.args[0]}, which torch has no type for") from error
    elif weights.manifest.format == "checkpoint":
        found = _read_torch(data, name, unsafe)
    else:
        raise ArtifactError(f"{name}: no weights are read from {weights.manifest.format}", "one of: .pt .safetensors")
    state = _unwrapped(found, name)
    for key, tensor in state.items():
        # A tensor of stride 0 is as large as it says it is, and a few bytes in the file.
        if tensor.nbytes > max(tensor.untyped_storage().nbytes(), SPREAD_BYTES):
            raise ArtifactError(f"{name}: {key!r} has {tensor.numel()} elements, and the file holds fewer")
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise ArtifactError(f"{name}: {key!r} holds NaN")
    return state


def _read_torch(data: bytes, name: str, unsafe: bool) -> Any:
    if not unsafe:
        pickles.refuse_code(data, name)
    try:
        with quiet():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=not unsafe)
    except _UNREADABLE as error:
        hint = pickles.HINT if isinstance(error, pickle.UnpicklingError) and not unsafe else None
        raise ArtifactError(f"{name}: not a torch checkpoint that can be read, or cut short", hint) from error


def _unwrapped(found: Any, name: str) -> StateDict:
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if isinstance(found, Mapping):
        for key in WRAPPERS:
            if isinstance(found.get(key), Mapping) and not any(isinstance(one, torch.Tensor) for one in found.values()):
                found = found[key]
                break
    if not isinstance(found, Mapping) or not found:
        raise ArtifactError(
            f"{name}: holds a {type(found).__name__}, not a state dict", "torch.save(model.state_dict(), 'weights.pt')"
        )
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ArtifactError(
                f"{name}: {key!r} is a {type(value).__name__}, not a tensor: not a state dict",
                "torch.save(model.state_dict(), 'weights.pt')",
            )
    return dict(found)


def fill(module: torch.nn.Module, weights: Artifact, unsafe: bool = False) -> None:
    """Load a file's weights into a module, in place; ArtifactError names keys and shapes that do not fit."""
    state = read(weights, unsafe)
    wanted = module.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in wanted):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    # Older files also hold what the model computes for itself (position_ids of BERT); the same numbers are no trouble.
    computed = {key: value for key, value in module.named_buffers() if key not in wanted}
    state = {key: value for key, value in state.items() if key not in computed or not _same(value, computed[key])}
    _refuse_mismatch(state, wanted, str(weights.path))
    with AuthorsCode(f"{weights.path}: does not fit the model"):
        module.load_state_dict(state)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.shape, left.dtype) == (right.shape, right.dtype) and torch.equal(left.cpu(), right.cpu())


def _refuse_mismatch(state: StateDict, wanted: Mapping[str, Any], name: str) -> None:
    shapes = [
        f"{key!r} is {list(state[key].shape)}, the model has {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and isinstance(value, torch.Tensor) and state[key].shape != value.shape
    ]
    troubles = [
        *_some("lacks", sorted(set(wanted) - set(state))),
        *_some("has besides", sorted(set(state) - set(wanted))),
        *(shapes[:SHOWN]),
    ]
    if troubles:
        raise ArtifactError(f"{name}: these weights are not for this model: {'; '.join(troubles)}")


def _some(word: str, keys: list[str]) -> list[str]:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return [f"{word} {', '.join(map(repr, keys[:SHOWN]))}{more}"] if keys else []
