"""Recurrent layers: a hidden unit is a row of every gate, a column of the recurrent matrix, a number of the state."""

from modelctl.graph.channels.dims import product, unify
from modelctl.graph.channels.site import Outputs, Site, rule

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule(*_GATES)
def recurrent(site: Site) -> Outputs:
    """x [time, batch, in], W [directions, gates × hidden, in], R [directions, gates × hidden, hidden]."""
    axes, weight, recurrence = site.dims(0), site.dims(1), site.dims(2)
    gates = _GATES[site.node.op_type]
    hidden = recurrence[2]
    site.kind("hidden", hidden)
    site.freeze(weight[:1], "are directions of")
    site.freeze(axes[:2] if not site.attribute("layout", 0) else axes[1:2], "are read in order by")
    unify(weight[2], axes[2])
    for matrix in (weight, recurrence):
        unify(matrix[1], product([*site.fixed([gates], "are gates of"), hidden]))
        unify(matrix[0], weight[0])
        site.produce(matrix[1])
    site.consume(weight[2])
    site.consume(hidden)
    for place, count in ((3, 2 * gates), (7, 3)):  # biases of W and R, and the peepholes
        if site.has(place):
            unify(site.dims(place)[0], weight[0])
            unify(site.dims(place)[1], product([*site.fixed([count], "are gates of"), hidden]))
    batch = axes[1] if not site.attribute("layout", 0) else axes[0]
    state = [weight[0], batch, hidden] if not site.attribute("layout", 0) else [batch, weight[0], hidden]
    for place in (5, 6):
        if site.has(place):
            for one, other in zip(site.dims(place), state, strict=True):
                unify(one, other)
    site.follow("hidden_size", [hidden])
    if site.attribute("layout", 0):
        return [[axes[0], axes[1], weight[0], hidden], state, state]
    return [[axes[0], weight[0], axes[1], hidden], state, state]
