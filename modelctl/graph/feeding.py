"""The samples that a `--data` value means, for a loaded model: what is raw goes through what its manifest declares."""

from collections.abc import Sequence

from modelctl.artifact import Payload
from modelctl.data import Data, open_data
from modelctl.graph.session import Session
from modelctl.processing import declared


def data_for(text: str, payload: Payload, session: Session, seed: int, columns: Sequence[str] = ()) -> Data:
    """`open_data` for the model in `payload`, which runs as `session`; ArtifactError if what it declares is unfit."""
    around = declared.of(payload, session.inputs, session.outputs)
    return open_data(text, session.inputs, seed, columns, around)
