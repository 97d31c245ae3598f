"""Somebody who asks, and what he may."""

import hashlib
from fnmatch import fnmatchcase

from modelctl.crypto.api_keys import Rights
from modelctl.options import May

REMEMBERED = 1024  # names of models, of each caller
EVERYTHING = Rights(may=tuple(May))


class Caller:
    """A client that has shown who it is; `number` tells it from all others, in every worker and after every reload."""

    __slots__ = ("_asks", "admitted", "burst", "may", "name", "number", "rights", "step_s", "until")

    def __init__(self, name: str, rights: Rights, kind: str, until: float | None = None) -> None:
        self.name = name
        self.rights = rights
        self.may = frozenset(rights.may)
        self.until = until  # seconds since 1970, when it is let in no more
        self.step_s = 1 / rights.rate if rights.rate is not None else 0.0  # between two requests, on the whole
        self.burst = rights.at_once
        self.number = int.from_bytes(hashlib.sha256(f"{kind}:{name}".encode()).digest()[:8], "little") or 1
        self.admitted: set[str] = set()  # paths at which it was found that it may ask
        self._asks: dict[str, bool] = {}

    def asks(self, model: str) -> bool:
        """Whether it may ask the model of that name."""
        found = self._asks.get(model)
        if found is None:
            if len(self._asks) >= REMEMBERED:
                self._asks.clear()
            found = self._asks[model] = any(fnmatchcase(model, one) for one in self.rights.models)
        return found

    @property
    def limited(self) -> bool:
        """Whether there may be models of which it is not to know."""
        return "*" not in self.rights.models
