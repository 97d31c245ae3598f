"""modelctl: from a trained model to a served prediction, each step measured, recorded and verifiable."""

__version__ = "0.1.0"
