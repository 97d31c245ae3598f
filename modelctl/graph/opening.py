"""The bytes of a model that is to be run and not changed: checked as they are read, a sealed one's opened in memory."""

from modelctl.artifact import Artifact, Payload
from modelctl.formats import onnx as onnx_format
from modelctl.options import OpeningOptions
from modelctl.progress import Progress


def opened(model: Artifact, options: OpeningOptions, step: str, progress: Progress) -> Payload:
    """What `model` holds, for the step of that name; UnsupportedError for what is not onnx.

    IntegrityError for changed bytes; of a sealed model, what `envelope.open_sealed` raises.
    """
    if model.manifest.format == "sealed":
        from modelctl.crypto import envelope, keys  # here, for a plain model need not wait for them

        payload = envelope.open_sealed(model, keys.opening(options), progress=progress)
    else:
        payload = model.load()
    onnx_format.refuse_other(payload.manifest, model.path, step)
    return payload
