"""The torch meaning of each ONNX operator, a family a module; importing this room enters them all into the table."""

from modelctl.graph.operators import activations as activations
from modelctl.graph.operators import arithmetic as arithmetic
from modelctl.graph.operators import attention as attention
from modelctl.graph.operators import casting as casting
from modelctl.graph.operators import convolution as convolution
from modelctl.graph.operators import elementwise as elementwise
from modelctl.graph.operators import filling as filling
from modelctl.graph.operators import indexing as indexing
from modelctl.graph.operators import joining as joining
from modelctl.graph.operators import logic as logic
from modelctl.graph.operators import microsoft as microsoft
from modelctl.graph.operators import microsoft_integers as microsoft_integers
from modelctl.graph.operators import normalization as normalization
from modelctl.graph.operators import objectives as objectives
from modelctl.graph.operators import pooling as pooling
from modelctl.graph.operators import products as products
from modelctl.graph.operators import quantization as quantization
from modelctl.graph.operators import recurrent as recurrent
from modelctl.graph.operators import reductions as reductions
from modelctl.graph.operators import resize as resize
from modelctl.graph.operators import selection as selection
from modelctl.graph.operators import sequences as sequences
from modelctl.graph.operators import shapes as shapes
from modelctl.graph.operators.node import OPERATORS as OPERATORS
from modelctl.graph.operators.node import Node as Node
