"""What each operator says about the axes around it; a family a file."""

from modelctl.graph.channels.rules import attention, convolution, elementwise, layout, products, recurrent

__all__ = ["attention", "convolution", "elementwise", "layout", "products", "recurrent"]
