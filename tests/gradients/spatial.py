"""Cases of convolutions, pooling and resizing."""

from typing import Any

import numpy as np

from gradients.case import Case, Held, between, positive, spread, whole

_POOL: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
_SIZES = Held(np.array([1, 1, 7, 5], np.int64))

CASES = [
    Case("Conv", [(2, 4, 5, 5), (6, 2, 3, 3), (6,)], {"pads": [1, 0, 1, 2], "group": 2, "strides": [2, 1]}),
    Case("Conv", [(1, 2, 6), (3, 2, 3)], {"auto_pad": "SAME_LOWER", "dilations": [2]}),
    Case("Conv", [(1, 1, 3, 3, 3), (2, 1, 2, 2, 2), (2,)]),
    Case("ConvTranspose", [(1, 2, 3, 3), (2, 3, 3, 3), (3,)], {"strides": [2, 2], "output_padding": [1, 1]}),
    Case("ConvTranspose", [(1, 2, 3), (2, 2, 3), (2,)], {"strides": [3], "output_shape": [10]}),
    Case("ConvInteger", [(1, 2, 4, 4), (2, 2, 3, 3), Held(np.array(2.0))]),
    Case(
        "DeformConv",
        [(1, 2, 4, 4), (2, 1, 2, 2), between(0.1, 0.9, 1, 16, 3, 3), (2,), positive(1, 8, 3, 3)],
        {"group": 2, "offset_group": 2},
        opset=22,
    ),
    Case("CausalConvWithState", [(2, 3, 5), (3, 1, 3), (3,), (2, 3, 2)], {"activation": "silu"}, outputs=2),
    Case("MaxPool", [spread(1, 2, 5, 5)], {**_POOL, "ceil_mode": 1}),
    Case("MaxPool", [spread(1, 2, 5, 4)], {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1]}, outputs=2),
    Case("MaxUnpool", [(1, 1, 2, 2), whole([[[[0, 3], [9, 14]]]])], _POOL),
    Case("AveragePool", [(1, 2, 5, 5)], {**_POOL, "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [(1, 2, 6)], {"kernel_shape": [2], "dilations": [2], "pads": [1, 0]}),
    Case("LpPool", [spread(1, 2, 5, 5)], {**_POOL, "p": 3}),
    Case("GlobalAveragePool", [(2, 3, 2, 2)]),
    Case("GlobalMaxPool", [spread(2, 3, 2, 2)]),
    Case("GlobalLpPool", [spread(2, 3, 2, 2)], {"p": 2}),
    *(
        Case("Resize", [(1, 1, 4, 4), None, None, _SIZES], {"mode": mode, "coordinate_transformation_mode": how})
        for mode in ("nearest", "linear", "cubic")
        for how in ("half_pixel", "align_corners", "asymmetric")
    ),
    Case("Resize", [(1, 1, 6, 6), None, None, _SIZES], {"mode": "linear", "antialias": 1}),
    Case("Upsample", [(1, 1, 2, 3), Held(np.array([1, 1, 2, 2.0]))], {"mode": "linear"}, opset=9),
    Case("GridSample", [(1, 2, 4, 4), between(-0.9, 0.9, 1, 3, 3, 2)], {"mode": "linear"}),
    Case("GridSample", [(1, 1, 3, 3, 3), between(-0.9, 0.9, 1, 2, 2, 2, 3)], {"align_corners": 1}),
    Case("AffineGrid", [(2, 2, 3), whole([2, 1, 3, 3])]),
]

EXCEPTIONS: dict[str, str] = {}
