"""The messages of the services, made of `schemas/*.proto` as protoc has compiled them into `descriptors.binpb`.

They live in a pool of their own: in the process of a client that brings the same messages along (tritonclient,
tensorflow) the two do not meet.
"""

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from modelctl.serve.refusal import Refused

_set = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("descriptors.binpb").read_bytes())
FILES = {one.name: one.SerializeToString() for one in _set.file}
POOL = descriptor_pool.DescriptorPool()
for _one in FILES.values():
    POOL.AddSerializedFile(_one)
SERVICES = sorted(f"{one.package}.{service.name}" for one in _set.file for service in one.service)


@cache
def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def parsed(kind: Any, data: bytes) -> Any:
    """A message out of its bytes; `Refused` 400 when it is none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Refused(f"not a {kind.DESCRIPTOR.name}") from error
