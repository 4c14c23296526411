"""Which leaves of a model the inner loop adapts.

A filter is a function `select(model) -> PyTree[bool]` of the model's structure, `True` on the leaves that adapt; those
that are not floating-point arrays never do. Leaves that are not selected keep their value in `adapt` and are still
meta-trained.
"""

from ._select import (
    Filter as Filter,
    all_but as all_but,
    body_only as body_only,
    by_name as by_name,
    everything as everything,
    head_only as head_only,
    intersection as intersection,
    only as only,
    partition as partition,
    without_norm as without_norm,
)
