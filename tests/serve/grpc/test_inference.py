"""The inference service: tensors of every datatype, what is refused, and that remembering changes no answer."""

import asyncio
import gzip
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import servers
from h2peer import Caller
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from servers import Running

from modelctl.options import ServeOptions
from modelctl.serve.grpc import calls, inference
from modelctl.serve.grpc.calls import CallRequest
from modelctl.serve.grpc.contents import FIELDS
from modelctl.serve.grpc.messages import message, parsed
from modelctl.serve.grpc.plans import Plans
from modelctl.serve.heads import Head
from modelctl.serve.http import Answer, App
from modelctl.serve.http2 import frames
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import DATATYPES, to_bytes

SERVICE = "/inference.GRPCInferenceService"
INFER = f"{SERVICE}/ModelInfer"
Request, Response = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")

ELEMENTS: dict[str, tuple[int, Any]] = {
    "BOOL": (TensorProto.BOOL, np.array([[True, False]])),
    "INT8": (TensorProto.INT8, np.array([[-128, 127]], np.int8)),
    "INT16": (TensorProto.INT16, np.array([[-32768, 32767]], np.int16)),
    "INT32": (TensorProto.INT32, np.array([[-(2**31), 5]], np.int32)),
    "INT64": (TensorProto.INT64, np.array([[-(2**63), 2**63 - 1]], np.int64)),
    "UINT8": (TensorProto.UINT8, np.array([[0, 255]], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([[0, 65535]], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([[0, 2**32 - 1]], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([[0, 2**64 - 1]], np.uint64)),
    "FP16": (TensorProto.FLOAT16, np.array([[1.5, -np.inf]], np.float16)),
    "FP32": (TensorProto.FLOAT, np.array([[1.5, np.nan]], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([[1e300, -0.0]], np.float64)),
    "BF16": (TensorProto.BFLOAT16, np.array([[1.5, 3e38]], ml_dtypes.bfloat16)),
    "BYTES": (TensorProto.STRING, np.array([["", "grüße"]], dtype=object)),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An application that echoes every datatype, and adds."""
    folder = tmp_path_factory.mktemp("echoes")
    files = [servers.echo(folder / f"{word}.onnx", element) for word, (element, _) in ELEMENTS.items()]
    files += [servers.pair(folder / "pair.onnx"), servers.lookup(folder / "lookup.onnx")]
    return App(servers.loaded(*files), ServeOptions())


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The one event loop on which the application's models answer."""
    found = asyncio.new_event_loop()
    yield found
    found.close()


def ask(loop: asyncio.AbstractEventLoop, app: App, body: bytes, path: str = INFER) -> Answer:
    """The application's answer to a call."""

    async def asked() -> Answer:
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = CallRequest(Head("GRPC", path, b"", {}, -1, True, False), body, lambda _, one: found.set_result(one))
        app.handle(request)
        return await found

    return loop.run_until_complete(asked())


def answer(loop: asyncio.AbstractEventLoop, app: App, request: Any) -> Any:
    found = ask(loop, app, request.SerializeToString())
    assert found.status == 200, found.headers
    return Response.FromString(found.body)


def refused(loop: asyncio.AbstractEventLoop, app: App, request: Any) -> str:
    found = ask(loop, app, request.SerializeToString())
    trailers = dict(found.headers)
    assert trailers[b"grpc-status"] == b"%d" % calls.INVALID_ARGUMENT
    return trailers[b"grpc-message"].decode()


def raw(model: str, tensors: dict[str, Any], **more: Any) -> Any:
    """A request with raw contents."""
    request = Request(model_name=model, **more)
    for name, array in tensors.items():
        word = next(word for word, kind in DATATYPES.items() if kind.dtype == array.dtype)
        request.inputs.add(name=name, datatype=word, shape=array.shape)
        request.raw_input_contents.append(to_bytes(array, DATATYPES[word]))
    return request


@pytest.mark.parametrize("word", ELEMENTS)
def test_every_datatype_travels_raw(loop: asyncio.AbstractEventLoop, app: App, word: str) -> None:
    array = ELEMENTS[word][1]
    for turn in range(3):
        found = answer(loop, app, raw(word, {"x": array}, id=f"é{turn}"))
        assert (found.model_name, found.model_version, found.id) == (word, "1", f"é{turn}")
        (one,) = found.outputs
        assert (one.name, one.datatype, list(one.shape)) == ("y", word, [1, 2])
        assert not one.HasField("contents")
        assert list(found.raw_output_contents) == [to_bytes(array, DATATYPES[word])]


@pytest.mark.parametrize("word", FIELDS)
def test_every_datatype_that_can_travels_typed(loop: asyncio.AbstractEventLoop, app: App, word: str) -> None:
    array, field = ELEMENTS[word][1], FIELDS[word]
    request = Request(model_name=word)
    one = request.inputs.add(name="x", datatype=word, shape=[1, 2])
    elements = [str(one).encode() for one in array[0]] if word == "BYTES" else array[0].tolist()
    getattr(one.contents, field).extend(elements)
    found = answer(loop, app, request)
    assert not found.raw_output_contents
    assert [one.name for one, _ in found.outputs[0].contents.ListFields()] == [field]
    np.testing.assert_array_equal(getattr(found.outputs[0].contents, field), elements)
    getattr(one.contents, field).append(elements[0])
    assert "asks for 2" in refused(loop, app, request) or "asks for" in refused(loop, app, request)
    one.ClearField("contents")
    assert "asks for" in refused(loop, app, request)
    one.contents.bool_contents.append(True) if word != "BOOL" else one.contents.fp32_contents.append(1)
    assert f"goes into {field}" in refused(loop, app, request)


def test_what_does_not_fit_its_datatype_is_refused(loop: asyncio.AbstractEventLoop, app: App) -> None:
    for word, value in (("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)):
        request = Request(model_name=word)
        one = request.inputs.add(name="x", datatype=word, shape=[1, 2])
        getattr(one.contents, FIELDS[word]).extend([0, value])
        assert "out of" in refused(loop, app, request)
    request = Request(model_name="FP16")
    request.inputs.add(name="x", datatype="FP16", shape=[1, 2]).contents.fp32_contents.extend([0, 0])
    assert "send it as raw_input_contents" in refused(loop, app, request)
    request = Request(model_name="BYTES")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"\xff", b""])
    assert "not UTF-8" in refused(loop, app, request)


def test_outputs_are_those_that_were_asked_for(loop: asyncio.AbstractEventLoop, app: App) -> None:
    a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
    for _ in range(3):
        request = raw("pair", {"b": b, "a": a})
        found = answer(loop, app, request)
        assert [one.name for one in found.outputs] == ["sum", "twice"]
        assert list(found.raw_output_contents) == [(a + b).astype(np.float32).tobytes(), (b * 2).tobytes()]
        request.outputs.add(name="twice")
        found = answer(loop, app, request)
        assert list(found.raw_output_contents) == [(b * 2).tobytes()]


def test_what_is_wrong_is_told(loop: asyncio.AbstractEventLoop, app: App) -> None:
    a, b = np.array([[0.5, 1.5]], np.float32), np.array([[2, -3]], np.int64)
    good = raw("pair", {"a": a, "b": b})

    def told(change: Any) -> str:
        request = Request.FromString(good.SerializeToString())
        change(request)
        return refused(loop, app, request)

    assert "input 'b' is missing" in told(lambda one: (one.inputs.pop(), one.raw_input_contents.pop()))
    assert "1 raw_input_contents for 2 inputs" in told(lambda one: one.raw_input_contents.pop())
    assert "is given twice" in told(lambda one: (one.inputs.add(name="a"), one.raw_input_contents.append(b"")))
    assert "no input 'c'" in told(lambda one: setattr(one.inputs[0], "name", "c"))
    assert "the model takes FP32" in told(lambda one: setattr(one.inputs[0], "datatype", "FP64"))
    assert "the model takes [-1, 2]" in told(lambda one: one.inputs[0].shape.append(1))
    assert "below 0" in told(lambda one: one.inputs[0].shape.__setitem__(0, -1))
    assert "8 bytes of data, shape [2, 2]" in told(lambda one: one.inputs[0].shape.__setitem__(0, 2))
    assert "has contents beside" in told(lambda one: one.inputs[0].contents.fp32_contents.append(1))
    assert "no output 'x'" in told(lambda one: one.outputs.add(name="x"))
    assert "asked for twice" in told(lambda one: [one.outputs.add(name="sum") for _ in range(2)])
    assert "not offered" in told(
        lambda one: one.inputs[0].parameters["shared_memory_region"].MergeFromString(b"\x08\x01")
    )
    found = dict(ask(loop, app, b"\x0a\xff").headers)
    assert found[b"grpc-message"] == b"not a ModelInferRequest"
    twice = good.SerializeToString() + Request(model_name="INT8").SerializeToString()
    assert b"given twice" in dict(ask(loop, app, twice).headers)[b"grpc-message"]
    gone = ask(loop, app, Request(model_name="none").SerializeToString())
    assert dict(gone.headers)[b"grpc-status"] == b"%d" % calls.NOT_FOUND
    gone = ask(loop, app, Request(model_name="pair", model_version="7").SerializeToString())
    assert dict(gone.headers)[b"grpc-status"] == b"%d" % calls.NOT_FOUND


def test_any_order_of_fields_is_understood(loop: asyncio.AbstractEventLoop, app: App) -> None:
    array = ELEMENTS["FP64"][1]
    whole = raw("FP64", {"x": array}, id="seven")
    last = Request(model_name="FP64", id="seven").SerializeToString()
    whole.ClearField("model_name")
    whole.ClearField("id")
    for _ in range(3):
        found = Response.FromString(ask(loop, app, whole.SerializeToString() + last).body)
        assert found.id == "seven"
        assert list(found.raw_output_contents) == [array.tobytes()]


TENSORS = st.builds(
    lambda rows, seed: {
        "a": np.random.default_rng(seed).standard_normal((rows, 2)).astype(np.float32),
        "b": np.random.default_rng(seed).integers(-9, 9, (rows, 2)),
    },
    st.integers(0, 4),
    st.integers(0, 99),
)
IDS = st.one_of(st.just(""), st.text(max_size=4), st.text("ab", min_size=120, max_size=135))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TENSORS, IDS, st.booleans()), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_what_is_remembered_is_what_would_be_read(
    app: App, asks: list[tuple[dict[str, Any], str, bool]], chance: random.Random
) -> None:
    model, plans = app.models.get("pair"), Plans()
    bodies = []
    for tensors, name, versioned in asks:
        request = raw("pair", tensors, id=name, model_version="1" if versioned else "")
        bodies.append(request.SerializeToString())
    for body in [*bodies, *bodies, *(mutated(chance.choice(bodies), chance) for _ in range(6))]:
        recalled = plans.recall(body)
        try:
            given = calls_parsed(body)
            asked = inference.read(given, model)
        except Refused:
            assert recalled is None
            continue
        if recalled is not None:
            assert (recalled.id, recalled.outputs, recalled.raw) == (asked.id, asked.outputs, asked.raw)
            assert recalled.feeds.keys() == asked.feeds.keys()
            for one, other in zip(recalled.feeds.values(), asked.feeds.values(), strict=True):
                assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
            outputs = {"sum": asked.feeds["a"], "twice": asked.feeds["b"]}
            plain = inference.write(asked, outputs, model).body
            inference.write(recalled, outputs, model)
            assert inference.write(recalled, outputs, model).body == plain
        plans.remember(body, given, asked, model)


def calls_parsed(body: bytes) -> Any:
    return parsed(Request, body)


def mutated(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randrange(1, 3)):
        place = chance.randrange(len(changed))
        changed[place] = chance.choice((changed[place] ^ 1, chance.randrange(256)))
    return bytes(changed)


# Over the wire.


@pytest.fixture
def caller(server: Running) -> Iterator[Caller]:
    """A connection to the server of the zoo."""
    with closing(Caller(server.port)) as found:
        yield found


def affine(rows: int = 1, **more: Any) -> Any:
    return raw("affine", {"x": np.ones((rows, 4), np.float32)}, **more)


def test_a_call_names_its_model(server: Running, caller: Caller) -> None:
    before = server.metric("modelctl_requests_total", model="affine")
    body, trailers = caller.call(INFER, affine(id="x").SerializeToString())
    assert Response.FromString(body).id == "x"
    assert trailers["grpc-status"] == "0"
    assert trailers["modelctl-model"] == server.ask("/v2/models/affine").headers["modelctl-model"]
    assert server.metric("modelctl_requests_total", model="affine") == before + 1


def test_codes_say_what_went_wrong(server: Running, caller: Caller) -> None:
    def code(path: str, body: bytes, **more: str) -> int:
        return int(caller.call(path, body, **more)[1]["grpc-status"])

    assert code("/inference.GRPCInferenceService/None", b"") == calls.UNIMPLEMENTED
    assert code("/v2", b"") == calls.UNIMPLEMENTED
    assert code(INFER, Request(model_name="none").SerializeToString()) == calls.NOT_FOUND
    assert code(INFER, affine().SerializeToString()[:-1]) == calls.INVALID_ARGUMENT
    assert code(INFER, affine(70_000).SerializeToString()) == calls.RESOURCE_EXHAUSTED
    assert code(INFER, affine().SerializeToString(), grpc_timeout="soon") == calls.INVALID_ARGUMENT
    assert code(INFER, affine().SerializeToString(), grpc_timeout="0n") == calls.DEADLINE_EXCEEDED
    assert code(INFER, affine().SerializeToString(), grpc_encoding="br") == calls.UNIMPLEMENTED
    assert code(INFER, affine().SerializeToString(), grpc_timeout="10S") == calls.OK
    told = caller.call(INFER, Request(model_name="ü%").SerializeToString())[1]["grpc-message"]
    assert told.startswith("no model '%C3%BC%25'; served: ")


def test_messages_may_be_compressed(caller: Caller) -> None:
    message = affine(100).SerializeToString()

    def told(flag: int, data: bytes, **more: str) -> dict[str, str]:
        number = caller.begin(INFER, flags=0, **more)
        caller.feed(frames.frame(frames.DATA, 1, number, bytes((flag,)) + len(data).to_bytes(4, "big") + data))
        caller.wait(lambda: number in caller.replies and caller.replies[number].ended)
        return caller.told(number)[1]

    assert told(1, gzip.compress(message), grpc_encoding="gzip")["grpc-status"] == "0"
    assert told(0, message, grpc_encoding="gzip")["grpc-status"] == "0"
    assert "does not say how" in told(1, gzip.compress(message))["grpc-message"]
    assert "not gzip" in told(1, message, grpc_encoding="gzip")["grpc-message"]
    assert "beginning to its end" in told(1, gzip.compress(message)[:-9], grpc_encoding="gzip")["grpc-message"]
    bomb = told(1, gzip.compress(bytes(10_000_000)), grpc_encoding="gzip")
    assert int(bomb["grpc-status"]) == calls.RESOURCE_EXHAUSTED
    number = caller.begin(INFER, message, message)
    caller.wait(lambda: number in caller.replies and caller.replies[number].ended)
    assert "exactly one message" in caller.told(number)[1]["grpc-message"]


def test_who_does_not_wait_is_not_computed_for(server: Running, caller: Caller) -> None:
    slow = raw("slow", {"x": np.ones((1, 256), np.float32)}).SerializeToString()
    late = caller.call(INFER, slow, grpc_timeout="1m")[1]
    assert int(late["grpc-status"]) == calls.DEADLINE_EXCEEDED
    assert server.metric("modelctl_breaker_open", model="slow") == 0  # an impatient client says nothing of the model
    before = server.metric("modelctl_request_errors_total", model="slow", kind="client_gone")
    numbers = [caller.begin(INFER, slow) for _ in range(20)]
    caller.feed(*(frames.rst_stream(number, frames.Code.CANCEL) for number in numbers[1:]))
    caller.wait(lambda: numbers[0] in caller.replies and caller.replies[numbers[0]].ended)

    def gone() -> float:
        return server.metric("modelctl_request_errors_total", model="slow", kind="client_gone") - before

    servers.eventually(lambda: gone() >= 10)
    servers.eventually(lambda: server.metric("modelctl_requests_in_flight", model="slow") == 0)


def test_too_many_are_refused(zoo: dict[str, Path]) -> None:
    slow = raw("slow", {"x": np.ones((1, 256), np.float32)}).SerializeToString()
    with servers.running([zoo["slow"]], "--max-queue", "1", "--max-batch", "1") as server, ExitStack() as stack:
        caller = stack.enter_context(closing(Caller(server.port)))
        numbers = [caller.begin(INFER, slow) for _ in range(30)]
        caller.wait(lambda: all(number in caller.replies and caller.replies[number].ended for number in numbers))
        codes = [caller.told(number)[1]["grpc-status"] for number in numbers]
        assert set(codes) == {"0", str(calls.RESOURCE_EXHAUSTED)}
        (some, *_) = [one for one in map(caller.told, numbers) if one[1]["grpc-status"] != "0"]
        assert some[1]["retry-after"] == "1"
        assert some[1]["grpc-retry-pushback-ms"] == "1000"
        assert server.stop()[0] == 0


def test_accepted_calls_are_answered_at_the_end(zoo: dict[str, Path]) -> None:
    slow = raw("slow", {"x": np.ones((1, 256), np.float32)}).SerializeToString()
    with servers.running([zoo["slow"]], "--max-batch", "1") as server, ExitStack() as stack:
        caller, idle = (stack.enter_context(closing(Caller(server.port))) for _ in range(2))
        idle.call(f"{SERVICE}/ServerLive", b"")
        stream = idle.begin(f"{SERVICE}/ModelStreamInfer", flags=0)
        watch = idle.begin("/grpc.health.v1.Health/Watch", b"", flags=0)
        idle.wait(lambda: watch in idle.replies and idle.replies[watch].body)
        numbers = [caller.begin(INFER, slow) for _ in range(40)]
        caller.wait(lambda: numbers[0] in caller.replies)
        server.process.terminate()
        time.sleep(0.1)
        numbers += [caller.begin(INFER, slow) for _ in range(5)]
        caller.wait(lambda: all(number in caller.replies and caller.replies[number].ended for number in numbers))
        assert {caller.told(number)[1]["grpc-status"] for number in numbers} == {"0"}
        idle.wait(lambda: all(one in idle.replies and idle.replies[one].ended for one in (stream, watch)))
        assert int(idle.told(stream)[1]["grpc-status"]) == calls.UNAVAILABLE
        assert idle.replies[watch].body[-2:] == b"\x08\x02"  # NOT_SERVING
        assert server.ended() == (0, "")


def test_streams_answer_in_order(caller: Caller) -> None:
    kind = message("inference.ModelStreamInferResponse")
    slow = raw("slow", {"x": np.ones((1, 256), np.float32)}, id="slow").SerializeToString()
    asks = [slow, affine(id="1").SerializeToString(), affine(id="2").SerializeToString()[:-1], b"\xff", slow]
    asks += [affine(id=str(one)).SerializeToString() for one in range(100)]
    number = caller.begin(f"{SERVICE}/ModelStreamInfer", *asks)
    caller.wait(lambda: number in caller.replies and caller.replies[number].ended)
    found, body = [], caller.replies[number].body
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        found.append(kind.FromString(body[5:end]))
        body = body[end:]
    assert caller.replies[number].trailers["grpc-status"] == "0"
    ids = [one.infer_response.id for one in found]
    assert ids[:2] == ["slow", "1"]
    assert ids[4:] == ["slow", *map(str, range(100))]
    assert [bool(one.error_message) for one in found] == [False, False, True, True, *[False] * 101]
    assert found[3].error_message == "not a ModelInferRequest"


def test_an_answer_waits_for_leave_and_questions_for_the_answer(caller: Caller) -> None:
    number = caller.begin(f"{SERVICE}/ModelStreamInfer", *[affine(2_000).SerializeToString()] * 25)  # 32 kB each

    def widened() -> bool:
        caller.feed(frames.window_update(0, 60_000), frames.window_update(number, 60_000))
        return caller.replies[number].ended if number in caller.replies else False

    caller.wait(widened)
    assert caller.replies[number].trailers["grpc-status"] == "0"
    assert len(caller.replies[number].body) > 25 * 2_000 * 12
