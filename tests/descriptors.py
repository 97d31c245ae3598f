"""What `schemas/*.proto` say, compiled: `python tests/descriptors.py` writes it anew (pip install grpcio-tools).

The server makes its messages of `modelctl/serve/grpc/descriptors.binpb`, a serialized FileDescriptorSet.
"""

import tempfile
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMAS = REPOSITORY / "schemas"
COMPILED = REPOSITORY / "modelctl" / "serve" / "grpc" / "descriptors.binpb"


def compiled() -> bytes:
    """The descriptors of all schemas and of what they import."""
    protoc: Any = import_module("grpc_tools.protoc")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        known = files("grpc_tools") / "_proto"
        names = sorted(one.name for one in SCHEMAS.glob("*.proto"))
        command = ["protoc", f"-I{SCHEMAS}", f"-I{known}", "--include_imports", f"--descriptor_set_out={out}", *names]
        assert protoc.main(command) == 0
        return out.read_bytes()


if __name__ == "__main__":
    COMPILED.write_bytes(compiled())
