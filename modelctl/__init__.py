"""modelctl: from a trained model to a served prediction, each step measured, recorded and verifiable."""

import os

__version__ = "0.1.0"

# onnxruntime 1.29 and later reports to its maker from Linux too, unless this is set before it is first imported
# (microsoft/onnxruntime#27379): what a model is and who runs it is nobody's business. Set it to 0 to allow it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
