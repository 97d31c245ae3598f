"""`grpc.reflection`, v1 and v1alpha: the services and messages of this server, for clients without .proto files."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from google.protobuf import descriptor_pb2

from modelctl.serve.grpc.calls import METHOD, NOT_FOUND, CallRequest, Line
from modelctl.serve.grpc.messages import FILES, POOL, SERVICES, message, parsed
from modelctl.serve.http import App, Request, Route
from modelctl.serve.refusal import Refused, told

VERSIONS = ("v1", "v1alpha")


def routes(app: App) -> Iterable[Route]:
    """The methods of the services."""
    for version in VERSIONS:
        package = f"grpc.reflection.{version}"
        yield Route(METHOD, f"/{package}.ServerReflection/ServerReflectionInfo", partial(_begin, app, package))


def _begin(app: App, package: str, request: Request) -> None:
    assert isinstance(request, CallRequest)
    assert request.line is not None
    request.talk = _Questions(app, package, request, request.line)


class _Questions:
    """The server's side of one call."""

    full = False

    def __init__(self, app: App, package: str, request: CallRequest, line: Line) -> None:
        self._app = app
        self._asked = message(f"{package}.ServerReflectionRequest")
        self._response = message(f"{package}.ServerReflectionResponse")
        self._request = request
        self._line = line

    def heard(self, data: bytes) -> None:
        try:
            asked = parsed(self._asked, data)
        except Refused as refused:
            self._app.refuse(self._request, refused)
            return
        response = self._response(valid_host=asked.host, original_request=asked)
        try:
            _answer(asked, response)
        except KeyError as error:
            response.error_response.error_code = NOT_FOUND
            response.error_response.error_message = f"not found: {told(error.args[0])}"
        self._line.push(response.SerializeToString())

    def ended(self) -> None:
        self._line.close()

    def lost(self) -> None:
        pass

    def wind_down(self) -> None:
        self._app.refuse(self._request, Refused("the server ends", 503))


def _answer(asked: Any, response: Any) -> None:
    """Fill in what was asked for; KeyError for what there is not."""
    kind = asked.WhichOneof("message_request")
    if kind == "list_services":
        for name in SERVICES:
            response.list_services_response.service.add(name=name)
    elif kind == "file_by_filename":
        response.file_descriptor_response.file_descriptor_proto.extend(_with_imports(asked.file_by_filename))
    elif kind == "file_containing_symbol":
        file = _file_of(asked.file_containing_symbol)
        response.file_descriptor_response.file_descriptor_proto.extend(_with_imports(file))
    elif kind == "all_extension_numbers_of_type":  # of messages of proto3, which have none
        name = asked.all_extension_numbers_of_type
        response.all_extension_numbers_response.base_type_name = POOL.FindMessageTypeByName(name).full_name
    else:
        raise KeyError(kind or "such request")


def _file_of(symbol: str) -> str:
    """The file in which a service, method, message or enum stands; KeyError if none does."""
    try:
        return str(POOL.FindFileContainingSymbol(symbol).name)
    except KeyError:
        service, _, method = symbol.rpartition(".")
        return str(POOL.FindServiceByName(service).methods_by_name[method].containing_service.file.name)


@cache
def _with_imports(name: str) -> list[bytes]:
    """A file, and behind it those that it imports."""
    found, waiting = {name: FILES[name]}, [name]
    while waiting:
        for one in descriptor_pb2.FileDescriptorProto.FromString(FILES[waiting.pop()]).dependency:
            if one not in found:
                found[one] = FILES[one]
                waiting.append(one)
    return list(found.values())
