"""Looking through a pickle without running it: which names it would import, and whether they only build tensors.

A pickle is a program (Python's `pickletools` lists its operations). What it can do to us is decided by the functions
that it names; a state dict names a handful, each of which builds a tensor or a dict.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator

from modelctl.errors import ArtifactError

LIMIT_BYTES = 1 << 28
HINT = "torch.save(model.state_dict(), 'weights.pt'); or --unsafe-pickle, for a file you made yourself"

HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    ("_codecs", "encode"),
}
_DTYPES = {
    *("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
}


def refuse_code(data: bytes, name: str) -> None:
    """ArtifactError if a torch checkpoint holds a pickle that names more than what builds tensors, or none at all."""
    for program in programs(data, name):
        for module, attribute in names(program, name):
            if not harmless(module, attribute):
                raise ArtifactError(f"{name}: a pickle that would run code: it names {module}.{attribute}", HINT)


def harmless(module: str, attribute: str) -> bool:
    """Whether a name builds a tensor, a dict, or nothing."""
    storage = module in ("torch", "torch.storage") and attribute.endswith("Storage") and attribute.isidentifier()
    return (module, attribute) in HARMLESS or storage or (module == "torch" and attribute in _DTYPES)


def programs(data: bytes, name: str) -> Iterator[bytes]:
    """The pickles in a torch checkpoint: those in the zip, or one after the other in the older format without a zip."""
    if not data.startswith(b"PK"):
        yield data
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len({entry.filename for entry in entries}) != len(entries):
                raise ArtifactError(f"{name}: not a torch checkpoint: holds two entries of one name")
            found = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if any(entry.filename.endswith("/constants.pkl") for entry in found):
                raise ArtifactError(f"{name}: is TorchScript, not a state dict", HINT)
            if not found:
                raise ArtifactError(f"{name}: not a torch checkpoint: a zip without a pickle in it")
            if sum(entry.file_size for entry in found) > LIMIT_BYTES:
                raise ArtifactError(f"{name}: its pickle is larger than {LIMIT_BYTES} bytes")
            for entry in found:
                yield archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(f"{name}: not a torch checkpoint, or cut short") from error


def names(data: bytes, name: str) -> Iterator[tuple[str, str]]:
    """(module, attribute) of all that the pickles at the beginning of `data` would import; ArtifactError if none is."""
    stream = io.BytesIO(data)
    found = 0
    while stream.tell() < len(data):
        try:
            yield from _names(stream)
        except (ValueError, EOFError, IndexError, UnicodeError, OverflowError) as error:
            if found:
                return  # the older format goes on with the tensors' bytes
            raise ArtifactError(f"{name}: not a torch checkpoint, or cut short") from error
        found += 1


def _names(stream: io.BytesIO) -> Iterator[tuple[str, str]]:
    texts: list[str] = []
    memo: dict[int, str] = {}
    for operation, argument, _ in pickletools.genops(stream):
        match operation.name:
            case "GLOBAL" | "INST":
                module, _, attribute = str(argument).partition(" ")
                yield module, attribute
            case "STACK_GLOBAL":
                # What these two are is only sure if they are the last two texts; anything else is refused by its name.
                yield (texts[-2], texts[-1]) if len(texts) > 1 else ("?", "?")
            case "EXT1" | "EXT2" | "EXT4":
                yield "copyreg", f"extension {argument}"
            case "MEMOIZE":
                memo[len(memo)] = texts[-1] if texts else "?"
            case "BINGET" | "LONG_BINGET" | "GET":
                texts.append(memo.get(int(argument or 0), "?"))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument or 0)] = texts[-1] if texts else "?"
            case word if "UNICODE" in word or "STRING" in word:
                texts.append(argument if isinstance(argument, str) else "?")
