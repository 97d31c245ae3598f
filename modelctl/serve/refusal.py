"""The answer to a request that can't be carried out: a status, one line, and the word that counts it."""


class Refused(Exception):  # noqa: N818 - the name says what happened to the request
    """A request that is answered with an error: HTTP `status`, one line of `message`, extra `headers`.

    `kind` is the label under which `/metrics` counts it.
    """

    def __init__(self, message: str, status: int = 400, kind: str = "", headers: tuple[tuple[bytes, bytes], ...] = ()):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind or KINDS.get(status, "bad_request")
        self.headers = headers


KINDS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "slow_client",
    413: "too_large",
    415: "media_type",
    431: "too_large",
    429: "overload",
    499: "client_gone",
    500: "internal",
    503: "not_ready",
    504: "timeout",
}
KINDS_OF_ERROR = (*dict.fromkeys(KINDS.values()), "not_http", "broken", "rate")


def told(value: object, limit: int = 60) -> str:
    """A value out of a request, fit to be quoted in one short line."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
