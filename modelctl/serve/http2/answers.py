"""What answers over HTTP/2 begin with: blocks of headers, remembered by what they say while the date stands."""

from modelctl.serve.http import Answer, Request
from modelctl.serve.http2.blocks import status_block
from modelctl.serve.wire import REMEMBERED, Wire


class Answers:
    """The blocks that all connections of a server share."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._date = b""
        self._blocks: dict[object, bytes] = {}

    def block(self, request: Request, answer: Answer) -> bytes:
        """The block of headers of an answer that is no call of gRPC."""
        date, model = self._wire.date, request.model
        if date is not self._date or len(self._blocks) >= REMEMBERED:
            self._date = date
            self._blocks.clear()
        key = (answer.status, answer.content_type, answer.headers, model and model.told, len(answer.body))
        found = self._blocks.get(key)
        if found is None:
            fields = [(b"date", date), (b"content-type", answer.content_type), *answer.headers]
            fields += [model.header] if model is not None else []
            fields.append((b"content-length", b"%d" % len(answer.body)))
            found = self._blocks[key] = status_block(answer.status, *((name.lower(), value) for name, value in fields))
        return found
