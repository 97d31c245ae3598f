"""Fewer bits: ways to quantize a graph, one subject a file."""
