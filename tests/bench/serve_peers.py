"""The servers that modelctl's is measured beside: what pip installs, a small program for each, and where it listens.

Every program opens the same models with the same onnxruntime, one thread, and runs them the way that is the fastest of
those its documentation shows, in one worker.
"""

import json
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from peers import Peer
from serve_programs import BENTOML, FASTAPI, KSERVE, LITSERVE, MLSERVER, OPENED, PYTRITON, RAY

ORT, NUMPY = "onnxruntime==1.31.1", "numpy==2.4.6"
NAMES = ("mlp", "cnn", "picture")


@dataclass(frozen=True)
class Server:
    """A way to serve the models: its environment, files, command, and paths.

    In command and environment stand {python}, {program}, {folder}, and the ports {port}, {grpc} and {metrics}. `paths`
    says for each kind of body where it goes, with {model} in it; gRPC has no path.
    """

    name: str
    peer: Peer
    command: tuple[str, ...]
    paths: dict[str, str]
    program: str = ""
    grpc: str = "{grpc}"
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    restless: bool = False  # takes CPU time while nobody asks, and so is measured apart from others

    @property
    def title(self) -> str:
        """Its name, and the version that is pinned."""
        pinned = next((one for one in self.peer.requirements), "")
        return f"{self.name} {pinned.partition('==')[2]}".strip()

    def lay(self, folder: Path) -> None:
        """Write what it needs beside the models."""
        (folder / "opened.py").write_text(OPENED)
        if self.program:
            (folder / f"{self.peer.name}_program.py").write_text(self.program)
        for path, text in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


_MLSERVER_FILES = {
    f"mlserver_models/{name}/model-settings.json": json.dumps(
        {"name": name, "implementation": "mlserver_program.Served", "parameters": {"version": "1"}}
    )
    for name in NAMES
}
_MLSERVER_FILES["mlserver_models/settings.json"] = json.dumps({"parallel_workers": 0, "debug": False})

_LIBRARIES: str = sysconfig.get_config_var("LIBDIR") or ""  # or pytriton takes what other Python the system has
_V2 = "/v2/models/{model}/infer"
_PROGRAM = ("{python}", "{program}", "{port}", "{grpc}", "{metrics}")
_MLSERVER_PORTS = {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{grpc}", "MLSERVER_METRICS_PORT": "{metrics}"}

OURS = Server(
    "modelctl",
    Peer("modelctl", (), ()),
    (sys.executable, "-m", "modelctl", "serve", *(f"{name}.onnx" for name in NAMES), "--port", "{port}"),
    {"json": _V2, "binary": _V2, "various": _V2, "grpc": ""},
    grpc="{port}",
)
SERVERS = (
    Server(
        "FastAPI + pydantic",
        Peer("fastapi", ("fastapi==0.165.0", "uvicorn[standard]==0.51.0", NUMPY, ORT), ()),
        ("{python}", "-m", "uvicorn", "fastapi_program:app", "--port", "{port}", "--no-access-log"),
        {"json": "/{model}/infer", "floats": "/{model}/floats"},
        FASTAPI,
    ),
    Server(
        "MLServer",
        Peer("mlserver", ("mlserver==1.7.1", "uvloop==0.21.0", ORT), ()),
        ("{python}", "-m", "mlserver.cli.main", "start", "mlserver_models"),
        {"json": _V2, "grpc": ""},
        MLSERVER,
        files=_MLSERVER_FILES,
        environment=_MLSERVER_PORTS | {"PYTHONPATH": "{folder}"},
    ),
    Server(
        "KServe",
        Peer("kserve", ("kserve==0.21.0", ORT), ()),
        _PROGRAM,
        {"json": _V2, "binary": _V2, "grpc": ""},
        KSERVE,
    ),
    Server(
        "LitServe", Peer("litserve", ("litserve==0.2.19", NUMPY, ORT), ()), _PROGRAM, {"json": "/{model}"}, LITSERVE
    ),
    Server(
        "BentoML",
        Peer("bentoml", ("bentoml==1.4.40", NUMPY, ORT), ()),
        ("{python}", "-m", "bentoml", "serve", "bentoml_program:Served", "--host", "127.0.0.1", "--port", "{port}"),
        {"rows": "/{model}"},
        BENTOML,
        environment={"BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": "{folder}/bentoml_home"},
    ),
    Server(
        "pytriton",
        Peer("pytriton", ("nvidia-pytriton==0.7.0", ORT), ()),
        _PROGRAM,
        {"json": _V2, "binary": _V2, "grpc": ""},
        PYTRITON,
        environment={"LD_LIBRARY_PATH": _LIBRARIES},
    ),
    Server(
        "Ray Serve",
        Peer("ray", ("ray[haproxy,serve]==2.60.0", NUMPY, ORT), ()),
        _PROGRAM,
        {"json": "/{model}"},
        RAY,
        environment={"HOME": "{folder}", "PYTHONPATH": "{folder}", "RAY_SERVE_ENABLE_HA_PROXY": "0"},
        restless=True,
    ),
    Server(
        "Ray Serve, HAProxy",
        Peer("ray", ("ray[haproxy,serve]==2.60.0", NUMPY, ORT), ()),
        _PROGRAM,
        {"json": "/{model}"},
        RAY,
        environment={
            "HOME": "{folder}",
            "PYTHONPATH": "{folder}",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_EXPERIMENTAL_PIP_HAPROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        },
        restless=True,
    ),
)
