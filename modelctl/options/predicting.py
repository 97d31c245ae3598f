"""The knobs of `predict`."""

from dataclasses import dataclass
from typing import Annotated

from modelctl.options.shared import PROVIDER, OpeningOptions


@dataclass(frozen=True, kw_only=True)
class PredictOptions(OpeningOptions):
    """`predict`: one answer, from the shell."""

    provider: Annotated[str, PROVIDER] = "cpu"
