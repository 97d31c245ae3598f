"""What a model's manifest declares before and after it, ready to be carried out."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelctl.artifact import Payload
from modelctl.chains import TOKENIZER_SUFFIX
from modelctl.errors import ArtifactError, UsageError
from modelctl.manifest import TensorSpec
from modelctl.processing import fitting
from modelctl.processing.after import After
from modelctl.processing.before import Before


@dataclass(frozen=True)
class Declared:
    """The two ends of a model; None where nothing is declared."""

    before: Before | None
    after: After | None


def of(payload: Payload, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Declared | None:
    """What the manifest of a model with these inputs and outputs declares; None where it declares nothing.

    ArtifactError where it does not fit them or its tokenizer is missing, UnsupportedError for an extra that is.
    """
    described = payload.manifest
    if not (described.preprocess or described.postprocess):
        return None
    name = described.files[0].path
    try:
        fitting.check_before(described.preprocess, inputs)
        fitting.check_after(described.postprocess, inputs, outputs)
    except UsageError as error:
        raise ArtifactError(f"{name}: what its manifest declares does not fit: {error.message}", error.hint) from error
    tokenizer = payload.files.get(name + TOKENIZER_SUFFIX)
    before = Before(described.preprocess, inputs, tokenizer) if described.preprocess else None
    return Declared(before, After(described.postprocess) if described.postprocess else None)
