"""ModelStreamInfer: each message is one inference, and the answers come in the order of the questions.

What is wrong with a question is told in its answer's `error_message`, and the stream goes on. Of what a client asks
ahead, some is computed, and the rest waits with it: it is given no leave to send more.
"""

from collections import deque
from typing import Any

from google.protobuf.message import DecodeError

from modelctl.serve.grpc.calls import CONTENT_TYPE, CallRequest, Line
from modelctl.serve.grpc.inference import SERVICE, InferRequest, InferResponse
from modelctl.serve.grpc.messages import message
from modelctl.serve.grpc.plans import varint
from modelctl.serve.http import Answer, App, Request
from modelctl.serve.refusal import Refused

AHEAD = 32  # questions of one stream that are computed at once
ASK_PATH = f"/{SERVICE}/ModelInfer"

StreamResponse: Any = message("inference.ModelStreamInferResponse")
_INFER_RESPONSE = b"\x12"  # the tag of the field in which an answer lies


def begin(app: App, request: Request) -> None:
    """Take questions from now on."""
    assert isinstance(request, CallRequest)
    assert request.line is not None
    request.talk = _Questions(app, request, request.line)


class _Question(CallRequest):
    """One of a stream's questions; `answer` is what it was answered, the message that tells of it."""

    answer: bytes | None = None

    def refused(self, error: Refused) -> Answer:
        """The answer to a question that failed."""
        try:
            response = InferResponse(id=InferRequest.FromString(self.body).id)
        except DecodeError:
            response = InferResponse()
        told = StreamResponse(error_message=error.message, infer_response=response)
        return Answer(told.SerializeToString(), CONTENT_TYPE, error.status)


class _Questions:
    """The server's side of one stream."""

    def __init__(self, app: App, request: CallRequest, line: Line) -> None:
        self._app = app
        self._request = request
        self._line = line
        self._head = request.head._replace(path=ASK_PATH)
        self._waiting: deque[_Question] = deque()
        self._ended = False

    @property
    def full(self) -> bool:
        return len(self._waiting) >= AHEAD

    def heard(self, data: bytes) -> None:
        question = _Question(self._head, data, self._answered)
        question.deadline = self._request.deadline
        self._waiting.append(question)
        try:
            self._line.enter(question)
        except Refused as refused:
            self._app.refuse(question, refused)
        else:
            self._app.handle(question)

    def _answered(self, question: Request, answer: Answer) -> None:
        assert isinstance(question, _Question)
        body = answer.body
        question.answer = _INFER_RESPONSE + varint(len(body)) + body if answer.status == 200 else body
        self._request.model = question.model or self._request.model
        while self._waiting and (told := self._waiting[0].answer) is not None:
            self._waiting.popleft()
            self._line.push(told)
        if self._ended and not self._waiting:
            self._line.close()
        else:
            self._line.resume()

    def ended(self) -> None:
        self._ended = True
        if not self._waiting:
            self._line.close()

    def lost(self) -> None:
        for question in self._waiting:
            if question.answer is None:
                self._app.gone(question)
        self._waiting.clear()

    def wind_down(self) -> None:
        if not self._waiting:
            self._app.refuse(self._request, Refused("the server ends", 503))
