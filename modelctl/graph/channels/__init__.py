"""Structured pruning in the graph itself: which channels belong together, and the graph without some of them.

    channels = find(model)                                  groups.py: what can be cut, and what stands in the way
    scores = magnitude(model, channels.groups[0])           importance.py: which units matter
    smaller = cut(channels, {channels.groups[0].name: ...}) cutting.py: the graph with the units that stay
    shorter = remove(model, blocks(model)[0])               removing.py: the graph without a residual block
    macs(smaller)                                           costs.py

`dims` is the algebra, `rules` what each operator says in it, `labelling` solves both for a graph, `shapes` is what it
knows of sizes. Nothing here runs a model or needs torch.
"""
