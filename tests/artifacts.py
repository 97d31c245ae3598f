"""Artifacts to test with: any bytes under a model's name, for what does not look inside."""

from pathlib import Path
from typing import Any

from modelctl.artifact import Artifact
from modelctl.making import Origin, create
from modelctl.options import QuantizeOptions, StepOptions


def root(folder: Path, name: str = "a.onnx", data: bytes = b"trained") -> Artifact:
    """A foreign file: the root of a lineage."""
    (folder / name).write_bytes(data)
    return Artifact.open(folder / name)


def origin_of(*parents: Artifact, also: dict[str, Any] | None = None, **options: Any) -> Origin:
    """An origin as the step `quantize` would have it."""
    return Origin("quantize", QuantizeOptions(**options), parents, also=also or {}, libraries=("msgspec",))


def make(out: Path, origin: Origin, data: bytes = b"made", beside: dict[str, bytes] | None = None) -> Artifact:
    """An artifact of `origin` with these bytes, and with further files by name beside it."""
    with create(out, origin) as draft:
        draft.path.write_bytes(data)
        for name, content in (beside or {}).items():
            draft.path.with_name(name).write_bytes(content)
    return Artifact.open(out)


def exported(path: Path, primary: bytes = b"graph", **more: bytes) -> Artifact:
    """An artifact without a parent, its further files by their suffix; one that stands is replaced."""
    beside = {f"{path.name}.{suffix}": content for suffix, content in more.items()}
    return make(path, Origin("export", StepOptions(force=True), ()), primary, beside)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All that lies in and below a folder, by relative path: what files hold, and nothing for folders."""
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else b"" for one in folder.rglob("*")}


def names(folder: Path) -> set[str]:
    """What lies in a folder, hidden things too."""
    return {file.name for file in folder.iterdir()}
