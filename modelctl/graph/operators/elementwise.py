"""Operators that treat every number by itself: arithmetic, comparison, logic, rounding, exponentials."""

import torch

from modelctl.graph.operators.node import plain

plain("Add", torch.add)
plain("Relu", torch.relu)
