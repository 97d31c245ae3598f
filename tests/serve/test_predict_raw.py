"""`/predict` of models that declare what comes before and after them, asked of a real server."""

import base64
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from PIL import Image
from servers import Running

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.options import ExportOptions
from modelctl.processing.declared import Declared
from modelctl.serve import raw
from modelctl.serve.models import Models
from modelctl.serve.refusal import Refused
from modelctl.steps.export import Source, export

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (28, 28), dtype=np.uint8)
LABELS = [f"kind {index}" for index in range(10)]
ROWS: list[dict[str, Any]] = [{"age": 30, "pay": None, "job": "cook"}, {"age": 50, "pay": 300.5, "job": "smith"}]
TABLE = """
[[preprocess]]
do = "table"
columns = [
  {is = "number", name = "age", mean = 40, std = 10},
  {is = "number", name = "pay", min = 100, max = 300, missing = 200},
  {is = "category", name = "job", values = ["cook", "smith"]},
]
"""


def file_of(pixels: Any, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PNG = file_of(PIXELS)


def dense(path: Path, shape: list[int | str], classes: int, inputs: tuple[str, ...] = ("x",)) -> Path:
    """y[batch,classes] of the inputs, flat and side by side."""
    wide = int(np.prod([size for size in shape if isinstance(size, int)]))
    nodes = [helper.make_node("Flatten", [name], [f"flat {name}"]) for name in inputs]
    nodes.append(helper.make_node("Concat", [f"flat {name}" for name in inputs], ["flat"], axis=1))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["y"]))
    w = np.random.default_rng(1).standard_normal((wide * len(inputs), classes)).astype(np.float32)
    return servers.save(path, nodes, [(one, 1, shape) for one in inputs], [("y", 1, ["batch", classes])], {"w": w})


def declare(path: Path, source: Path, before: list[str], after: list[str]) -> Path:
    """An artifact that declares that."""
    options = ExportOptions(preprocess=tuple(before), postprocess=tuple(after), threads=1)
    export(Source.parse(str(source)), path, options)
    return path


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("declared")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "table.toml").write_text(TABLE)
    names = f"labels={folder / 'labels.txt'}"
    picture = dense(folder / "picture.onnx", ["batch", 1, 28, 28], 10)
    row = dense(folder / "row.onnx", ["batch", 4], 2)
    both = dense(folder / "both.onnx", ["batch", 4], 2, ("x", "z"))
    table = str(folder / "table.toml")
    return {
        "shirts": declare(folder / "shirts.onnx", picture, ["image"], [f"softmax,top-k=3,{names}"]),
        "argmax": declare(folder / "argmax.onnx", picture, ["image:bicubic,crop"], [f"softmax,argmax,{names}"]),
        "vectors": declare(folder / "vectors.onnx", picture, ["image"], []),
        "after": declare(folder / "after.onnx", picture, [], ["normalize"]),
        "rows": declare(folder / "rows.onnx", row, [table], ["softmax"]),
        "both": declare(folder / "both-d.onnx", both, ["image:2x2,gray,flat,input=x", "table:a,b,c,d"], ["argmax"]),
    }


@pytest.fixture(scope="module")
def server(declared: dict[str, Path]) -> Iterator[Running]:
    with servers.running(list(declared.values()), "--max-body-mb", "8", "--timeout-s", "20") as found:
        yield found
        status, err = found.stop()
        assert (status, err) == (0, "")


@pytest.fixture(scope="module")
def models(declared: dict[str, Path]) -> Models:
    return servers.loaded(*declared.values())


def logits(declared: dict[str, Path], tensor: Any) -> Any:
    return servers.reference(declared["shirts"], {"x": tensor.astype(np.float32)})["y"]


def shares(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def form(*fields: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    """A body of multipart/form-data and its type."""
    parts = []
    for name, filename, content in fields:
        more = f'; filename="{filename}"' if filename else ""
        parts.append(f'--b0und\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content)
    return b"\r\n".join([*parts, b"--b0und--\r\n"]), "multipart/form-data; boundary=b0und"


def packed_in_base64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def test_a_picture_is_answered_with_its_labels(server: Running, declared: dict[str, Path]) -> None:
    answer = server.ask("/predict/shirts", PNG, content_type="image/png")
    assert answer.status == 200
    digest = Artifact.open(declared["shirts"]).digest
    assert answer.json["model"] == answer.headers["modelctl-model"] == f"shirts@sha256:{digest}"
    (found,) = answer.json["predictions"]
    wanted = shares(logits(declared, PIXELS[None, None] / 255.0))[0]
    best = np.argsort(-wanted)[:3]
    assert [one["index"] for one in found] == best.tolist()
    assert [one["label"] for one in found] == [LABELS[index] for index in best]
    np.testing.assert_allclose([one["score"] for one in found], wanted[best], rtol=1e-4)


def test_all_ways_to_send_a_picture_are_answered_alike(server: Running) -> None:
    wanted = server.ask("/predict/shirts", PNG, content_type="image/png").json
    body, kind = form(("picture", "a.png", PNG))
    coded = packed_in_base64(PNG)
    url = {"b64": "data:image/png;base64," + coded["b64"]}
    for sent, told in (
        (PNG, "image/jpeg"),
        (PNG, "application/octet-stream"),
        (PNG, "application/x-www-form-urlencoded"),
        (body, kind),
        (body, kind.replace("b0und", '"b0und"')),
        (json.dumps(coded).encode(), "application/json"),
        (json.dumps([coded]).encode(), "application/json; charset=utf-8"),
        (json.dumps({"instances": [url]}).encode(), ""),
        (json.dumps({"instances": [{"x": coded}]}).encode(), ""),
        (json.dumps({"inputs": {"x": (PIXELS[None, None] / 255.0).tolist()}}).encode(), ""),
    ):
        answer = server.ask("/predict/shirts", sent, content_type=told)
        assert answer.status == 200, answer.body
        assert answer.json["predictions"][0][0]["label"] == wanted["predictions"][0][0]["label"]
        np.testing.assert_allclose(
            [one["score"] for one in answer.json["predictions"][0]],
            [one["score"] for one in wanted["predictions"][0]],
            rtol=1e-5,
        )


def test_several_pictures_are_answered_in_their_order(server: Running) -> None:
    other = file_of(255 - PIXELS)
    body, kind = form(("a", "a.png", PNG), ("b", "b.png", other))
    both = server.ask("/predict/shirts", body, content_type=kind).json["predictions"]
    assert len(both) == 2
    assert both[0] == server.ask("/predict/shirts", PNG).json["predictions"][0]
    assert both[1] == server.ask("/predict/shirts", other).json["predictions"][0]
    assert server.ask("/predict/shirts", [packed_in_base64(PNG), packed_in_base64(other)]).json["predictions"] == both


def test_message_pack_in_and_out(server: Running) -> None:
    wanted = server.ask("/predict/shirts", PNG).json["predictions"][0]
    for body in ({"instances": [PNG]}, [{"b64": PNG}], {"b64": PNG}):
        answer = server.ask("/predict/shirts", msgpack.packb(body), content_type="application/msgpack")
        assert answer.headers["content-type"] == "application/msgpack"
        found = msgpack.unpackb(answer.body)["predictions"][0]
        assert [one["label"] for one in found] == [one["label"] for one in wanted]
        np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in wanted], rtol=1e-5)
    answer = server.ask("/predict/shirts", PNG, accept="application/msgpack")
    assert msgpack.unpackb(answer.body)["model"].startswith("shirts@sha256:")
    body = msgpack.packb({"instances": [PNG]})
    answer = server.ask("/predict/shirts", body, content_type="application/msgpack", accept="application/json")
    assert answer.json["predictions"] == [wanted]


def test_what_is_not_declared_after_is_told_as_outputs(server: Running, declared: dict[str, Path]) -> None:
    found = server.ask("/predict/vectors", PNG).json
    np.testing.assert_allclose(found["outputs"]["y"], logits(declared, PIXELS[None, None] / 255.0), rtol=1e-4)
    answer = server.ask("/predict/vectors", PNG, accept="application/msgpack")
    np.testing.assert_allclose(msgpack.unpackb(answer.body)["outputs"]["y"], found["outputs"]["y"], rtol=1e-6)


def test_what_is_not_declared_before_is_sent_as_tensors(server: Running, declared: dict[str, Path]) -> None:
    tensor = CHANCE.random((2, 1, 28, 28))
    wanted = logits(declared, tensor)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for body in ({"instances": tensor.tolist()}, tensor.tolist()):
        np.testing.assert_allclose(server.ask("/predict/after", body).json["predictions"], wanted, rtol=1e-4)
    assert server.ask("/predict/after", PNG, content_type="image/png").status == 415


def test_tensors_of_the_open_inference_protocol_pass_by(server: Running, declared: dict[str, Path]) -> None:
    tensor = (PIXELS[None, None] / 255.0).astype(np.float32)
    found = server.ask("/v2/models/shirts/infer", {"inputs": [servers.v2("x", tensor, "FP32")]}).json["outputs"][0]
    np.testing.assert_allclose(np.reshape(found["data"], (1, 10)), logits(declared, tensor), rtol=1e-4)


def test_rows_in_every_form(server: Running, declared: dict[str, Path]) -> None:
    tensor = np.array([[-1, 0.5, 1, 0], [1, 1.0025, 0, 1]], np.float32)
    wanted = shares(servers.reference(declared["rows"], {"x": tensor})["y"])
    lists = [list(row.values()) for row in ROWS]
    text = b"job,age,pay\ncook,30,\nsmith,50,300.5\n"
    bare = b"30,,cook\r\n50,300.5,smith\r\n"
    csv, kind = form(("rows", "rows.csv", text))
    for body, told in (
        (json.dumps({"instances": ROWS}).encode(), "application/json"),
        (json.dumps(ROWS).encode(), "application/json"),
        (json.dumps(lists).encode(), "application/json"),
        (msgpack.packb({"instances": lists}), "application/msgpack"),
        (text, "text/csv"),
        (text, "text/csv; header=present"),
        (bare, "text/csv"),
        (bare, "Text/CSV; header=absent"),
        (csv, kind),
    ):
        answer = server.ask("/predict/rows", body, content_type=told, accept="application/json")
        assert answer.status == 200, answer.body
        np.testing.assert_allclose(answer.json["predictions"], wanted, rtol=1e-5)
    fields, kind = form(("age", None, b"30"), ("pay", None, b""), ("job", None, b"cook"))
    for body, told in (
        (json.dumps(ROWS[0]).encode(), ""),
        (json.dumps(lists[0]).encode(), ""),
        (fields, kind),
    ):
        found = server.ask("/predict/rows", body, content_type=told).json["predictions"]
        np.testing.assert_allclose(found, wanted[:1], rtol=1e-5)


def test_several_entries_make_one_instance(server: Running) -> None:
    square = file_of(CHANCE.integers(0, 256, (2, 2), dtype=np.uint8))
    cells = {"a": 1, "b": 2.5, "c": -1, "d": 0}
    found = server.ask("/predict/both-d", [{"x": packed_in_base64(square), **cells}]).json["predictions"]
    fields, kind = form(("x", "a.png", square), *((name, None, str(one).encode()) for name, one in cells.items()))
    assert server.ask("/predict/both-d", fields, content_type=kind).json["predictions"] == found
    assert found[0].keys() == {"index", "score"}
    answer = server.ask("/predict/both-d", [{"x": packed_in_base64(square), **cells, "e": 1}])
    assert "an instance has 'e'" in answer.error
    assert "an instance lacks 'x'" in server.ask("/predict/both-d", [cells]).error
    del cells["d"]
    answer = server.ask("/predict/both-d", [{"x": packed_in_base64(square), **cells}])
    assert "column 'd' is missing" in answer.error
    assert server.ask("/predict/both-d", square, content_type="image/png").status == 415
    assert server.ask("/predict/both-d", b"1,2,3,4", content_type="text/csv").status == 415


def bomb(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel: all of them, and nothing but zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("model", "body", "kind", "status", "words"),
    [
        ("shirts", b"", "image/png", 400, "not a picture"),
        ("shirts", PNG[:-30], "image/png", 400, "the PNG picture is not sound"),
        ("shirts", b"\x89PNG\r\n\x1a\n", "", 400, "not a picture"),
        ("shirts", bomb(30_000, 30_000), "image/png", 400, "pixels"),
        ("shirts", b"text", "text/plain", 415, "a text alone is not what the model takes: image x"),
        ("shirts", b"a,b", "text/csv", 415, "rows alone are not"),
        ("shirts", b"<a/>", "application/xml", 415, "is not read here"),
        ("shirts", b"{", "application/json", 400, "not JSON"),
        ("shirts", b"[" * 5000 + b"]" * 5000, "application/json", 400, "not JSON"),
        ("shirts", b"[]", "application/json", 400, "there are no instances"),
        ("shirts", b'{"instances": 3}', "application/json", 400, '"instances" is not a list'),
        ("shirts", b'{"b64": "***"}', "application/json", 400, "b64 is not base64"),
        ("shirts", b'{"b64": "AAAA"}', "application/json", 400, "not a picture"),
        ("shirts", b'{"b64": 7}', "application/json", 400, "a picture is"),
        ("shirts", b"[1, 2]", "application/json", 400, "a picture is"),
        ("shirts", b'{"inputs": [1, 2]}', "application/json", 400, "the model takes [-1, 1, 28, 28]"),
        ("shirts", b"\xc1", "application/msgpack", 400, "not MessagePack"),
        ("shirts", b"\x91" * 5000, "application/msgpack", 400, "not MessagePack"),
        ("shirts", b"\xdd\xff\xff\xff\xff\x01", "application/msgpack", 400, "not MessagePack"),
        ("shirts", b"\xc7\x01\x05a", "application/msgpack", 400, "holds an extension"),
        ("shirts", b"\x80" * (2 << 20), "application/msgpack", 400, "more than 262144 values"),
        ("shirts", b"--x--", "multipart/form-data; boundary=x", 400, "the form is not sound"),
        ("shirts", b"--x\r\n\r\n", "multipart/form-data", 400, "names no boundary"),
        ("shirts", b"--x\r\nA: b\r\n\r\nc\r\n--x--", "multipart/form-data; boundary=x", 400, "a part has no name"),
        ("shirts", b"--x\r\n" * 2000, "multipart/form-data; boundary=x", 400, "the form is not sound"),
        ("shirts", form(("a", None, b"1"))[0], form()[1], 400, "the field 'a' is no file"),
        ("rows", b"age,pay,job\n1,2", "text/csv", 400, "has 2 cells, not 3"),
        ("rows", b"1,2,3\xff", "text/csv", 400, "not UTF-8"),
        ("rows", b"1,2,king", "text/csv", 400, "'king' is none of cook, smith"),
        ("rows", b"inf,2,cook", "text/csv", 400, "inf is not a number"),
        ("rows", b'{"age": NaN}', "application/json", 400, "not JSON"),
        ("rows", b'{"age": 1e999}', "application/json", 400, "not JSON"),
        ("rows", b'{"age": 1e305, "job": "cook"}', "application/json", 400, "1e+305 is not a number"),
        ("rows", b'{"age": 1, "wage": 2}', "application/json", 400, "no column 'wage'"),
        ("rows", form(("age", None, b"1"), ("age", None, b"1"))[0], form()[1], 400, "given twice"),
        ("rows", PNG, "image/png", 415, "a picture alone is not what the model takes: table x"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    server: Running, model: str, body: bytes, kind: str, status: int, words: str
) -> None:
    answer = server.ask(f"/predict/{model}", body, content_type=kind)
    assert answer.status == status, answer.body
    assert words in answer.error
    assert len(answer.error) < 300


def test_a_large_picture_holds_up_nobody_else(server: Running) -> None:
    large = bomb(5000, 5000)  # some hundred milliseconds in the thread
    server.ask("/predict/shirts", PNG)
    done = threading.Event()
    statuses: list[int] = []

    def send() -> None:
        statuses.extend(server.ask("/predict/shirts", large, content_type="image/png").status for _ in range(3))
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    answered = 0
    connection = server.connect()
    while not done.is_set():
        assert servers.ask(connection, "/predict/shirts", PNG).status == 200
        answered += 1
    connection.close()
    thread.join()
    assert statuses == [200] * 3
    assert answered > 3


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/predict/shirts", PNG, "image/png"),
        ("/predict/rows", b"30,,cook\n" * 5_000, "text/csv"),
        ("/predict/shirts", b'{"inputs": ' + json.dumps([[[[0.5] * 28] * 28]]).encode() + b"}", "application/json"),
    ],
    ids=["on the loop", "in a thread", "tensors"],
)
def test_an_answer_tells_how_long_it_took_to_make_tensors(server: Running, path: str, body: bytes, kind: str) -> None:
    answer = server.ask(path, body, content_type=kind)
    assert answer.status == 200, answer.body
    told = dict(one.split(";dur=") for one in answer.headers["server-timing"].split(", "))
    spent = {name: float(ms) for name, ms in told.items()}
    assert spent["read"] > 0
    assert spent["total"] >= spent["read"] + spent["queue"] + spent["compute"] - 0.002


def test_many_rows_hold_up_nobody_else(server: Running) -> None:
    long = b"30,,cook\n" * 20_000
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(server.ask("/predict/rows", long, content_type="text/csv").status)
    )
    thread.start()
    connection = server.connect()
    answered = 0
    while thread.is_alive():
        assert servers.ask(connection, "/predict/shirts", PNG).status == 200
        answered += 1
    connection.close()
    assert statuses == [200]
    assert answered > 3


def test_a_client_that_leaves_is_waited_for_by_nobody(server: Running) -> None:
    large = bomb(5000, 5000)
    for _ in range(4):
        connection = server.connect()
        connection.request("POST", "/predict/shirts", large, {"Content-Type": "image/png"})
        time.sleep(0.01)
        connection.close()
    servers.eventually(lambda: server.metric("modelctl_requests_in_flight", model="shirts") == 0)
    assert server.ask("/predict/shirts", PNG).status == 200


def test_many_large_pictures_are_answered_or_refused(declared: dict[str, Path]) -> None:
    large = bomb(2000, 2000)
    with servers.running([declared["shirts"]], "--timeout-s", "20") as few:
        statuses: list[int] = []

        def send() -> None:
            statuses.append(few.ask("/predict", large, content_type="image/png").status)

        threads = [threading.Thread(target=send) for _ in range(50)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 2
        assert few.stop() == (0, "")


def test_a_chain_that_does_not_fit_its_model_is_not_served(declared: dict[str, Path], tmp_path: Path) -> None:
    for file in declared["shirts"].parent.glob("shirts.onnx*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sidecar = tmp_path / "shirts.onnx.manifest.json"
    sidecar.write_text(sidecar.read_text().replace('"height": 28', '"height": 29'))
    with pytest.raises(ArtifactError, match="what its manifest declares does not fit"):
        servers.loaded(tmp_path / "shirts.onnx")


FORM = "multipart/form-data; boundary=x"
KINDS = ["", "image/png", "text/plain", "text/csv", "application/json", "application/msgpack", FORM]
FORM_PIECES = [b"--x", b"\r\n", b"--", PNG, b'Content-Disposition: form-data; name="x"', b"a", b";filename=a"]
CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=8)
    | st.just(PNG),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instances", "inputs", "b64", "x", "age", "pay", "job", "a"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
BODIES = (
    st.binary(max_size=60)
    | CELLS.map(lambda one: msgpack.packb(one, default=str) if not _huge(one) else b"")
    | st.lists(st.sampled_from(FORM_PIECES), max_size=9).map(b"".join)
)


def _huge(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_huge, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63


@settings(deadline=None, max_examples=400)
@given(BODIES, st.sampled_from(KINDS))
def test_any_body_is_understood_or_refused(models: Models, body: bytes, kind: str) -> None:
    from modelctl.errors import DataError

    for model in models:
        assert isinstance(model.declared, Declared)
        before = model.declared.before
        try:
            asked = raw.read(body, kind.encode(), before)
            if asked.instances is not None and before is not None:
                feeds = before.feeds(asked.instances)
                assert set(feeds) == set(model.inputs)
        except (Refused, DataError) as refused:
            assert len(refused.message) < 400
            assert "\n" not in refused.message
