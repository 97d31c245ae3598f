"""The whole road on Fashion-MNIST, through the command line alone; prints one table.

    python tests/bench/road.py [--data FOLDER] [--limit N] [--epochs N] [--asked N] [--folder DIR]

Trains with the script that `modelctl init` writes, then export → prune 50 % → quantize (static int8) → eval against the
float model, and from the export distill to a tenth → sign → encrypt for two RSA recipients → push → pull elsewhere →
verify back to the checkpoint → serve sealed → ask the test images over HTTP, one a request. `tests/test_road.py` does
the same on fewer samples.
"""

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modelctl.data import open_data
from modelctl.manifest import TensorSpec

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGE = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 28, 28))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST)
    parser.add_argument("--limit", type=int, help="samples of each split; all by default")
    parser.add_argument("--epochs", type=int, default=0, help="of training; 0: as the script likes")
    parser.add_argument("--asked", type=int, default=10_000, help="images asked over HTTP")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = walk(folder, given.data, given.limit, given.epochs, given.asked)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")


def walk(folder: Path, data: Path, limit: int | None, epochs: int, asked: int) -> dict[str, Any]:
    """Walk the road in `folder`; what was measured on the way, and asserts that every promise was kept."""
    told = f"{data}#limit={limit}" if limit else str(data)
    test = f"{data}#split=test,limit={limit}" if limit else f"{data}#split=test"
    project = folder / "fashion"
    modelctl(folder, "init", "fashion", "--data", told)
    training = [sys.executable, "train.py", told, "--flip", "--epochs", str(epochs)]
    trained = subprocess.run(training, cwd=project, check=True, capture_output=True, text=True).stdout
    shape = "x:float32[batch,1,28,28]"
    export = modelctl(project, "export", "net:build", "--weights", "weights.pt", "--input", shape, "-o", "f.onnx")
    pruned = modelctl(project, "prune", "f.onnx", "--sparsity", "0.5", "--data", told, "-o", "f-pruned.onnx")
    small = modelctl(
        project,
        "quantize",
        "f-pruned.onnx",
        "--method",
        "static",
        "--data",
        told,
        "-o",
        "f-int8.onnx",
        "--threads",
        "1",
    )
    judged = modelctl(project, "eval", "f-int8.onnx", "--data", test, "--baseline", "f.onnx", "--threads", "1")
    tenth = str(export["metrics"]["parameters"] // 10)
    student = modelctl(project, "distill", "f.onnx", "--student-size", tenth, "--data", told, "-o", "f-student.onnx")
    sealed = seal(project)
    elsewhere = folder / "elsewhere"
    modelctl(folder, "pull", f"sqlite:///{project}/models.db/fashion:1.0", "-o", str(elsewhere))
    pulled = elsewhere / "f-int8.onnx.sealed"
    verified = modelctl(folder, "verify", str(pulled), "--root", str(project / "weights.pt"))
    assert verified["digest"] == small["digest"] == sealed["digest"]
    with served(pulled, project / "bob.pem") as port:
        accuracy, answers = asked_accuracy(port, test, asked, small["digest"])
    return {
        "trained": trained.strip().splitlines()[-1],
        "parameters": export["metrics"]["parameters"],
        "float accuracy": judged["accuracy_before"]["value"],
        "pruned accuracy": pruned["metrics"]["accuracy"]["value"],
        "int8 accuracy": judged["accuracy"]["value"],
        "int8 speedup, batch 1, one thread": judged["latency"]["speedup"]["value"],
        "int8 size ratio": round(export["size_bytes"] / small["size_bytes"], 3),
        "student parameters": student["metrics"]["parameters"],
        "student accuracy": student["metrics"]["accuracy"]["value"],
        "accuracy over HTTP": accuracy,
        "answers over HTTP": answers,
        "digest": small["digest"],
    }


def seal(project: Path) -> dict[str, Any]:
    """Sign, encrypt for two recipients, push; the sealed artifact."""
    modelctl(project, "keygen", "-o", "release.pem", "--type", "ed25519")
    for name in ("alice", "bob"):
        modelctl(project, "keygen", "-o", f"{name}.pem", "--type", "rsa")
    modelctl(project, "sign", "f-int8.onnx", "--key", "release.pem")
    modelctl(project, "verify", "f-int8.onnx", "--key", "release.pub.pem", "--root", "weights.pt")
    recipients = ["--recipient", "alice.pub.pem", "--recipient", "bob.pub.pem"]
    made = modelctl(project, "encrypt", "f-int8.onnx", *recipients, "-o", "f-int8.onnx.sealed")
    modelctl(project, "push", "f-int8.onnx.sealed", "sqlite:///models.db/fashion:1.0")
    return made


def modelctl(folder: Path, *words: str) -> dict[str, Any]:
    """Run one command in `folder`, and return what it says in JSON; a failure shows what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "modelctl", *words, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"modelctl {' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


@contextlib.contextmanager
def served(sealed: Path, key: Path) -> Iterator[int]:
    """The port of a server that answers from a sealed artifact."""
    command = [sys.executable, "-m", "modelctl", "serve", str(sealed), "--identity", str(key), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("ready "), line
            yield int(line.rsplit(":", 1)[1])
        finally:
            server.terminate()


def asked_accuracy(port: int, test: str, count: int, digest: str) -> tuple[float, int]:
    """The share of test images that the server names rightly, asked one a request as binary tensors; and how many."""
    samples = open_data(test, [IMAGE], seed=0).scored.first(count)
    assert samples.labels is not None
    connection = http.client.HTTPConnection("127.0.0.1", port)
    hits = 0
    for image, label in zip(samples.inputs["x"], samples.labels, strict=True):
        data = image.tobytes()
        about = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, 1, 28, 28],
            "parameters": {"binary_data_size": len(data)},
        }
        head = json.dumps({"inputs": [about]}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", "/v2/models/f-int8/infer", head + data, length)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.getheader("Modelctl-Model") == f"f-int8@sha256:{digest}"
        hits += int(np.argmax(answer["outputs"][0]["data"]) == label)
    connection.close()
    return hits / len(samples), len(samples)


if __name__ == "__main__":
    main()
