"""The torch meaning of each ONNX operator, a family a module; importing this room enters them all into the table."""

from modelctl.graph.operators import convolution as convolution
from modelctl.graph.operators import elementwise as elementwise
from modelctl.graph.operators import normalization as normalization
from modelctl.graph.operators import pooling as pooling
from modelctl.graph.operators import products as products
from modelctl.graph.operators.node import OPERATORS as OPERATORS
from modelctl.graph.operators.node import Node as Node
