"""The work that one step cannot do without: floating-point operations of its convolutions and matrix products.

A layer's forward map on one example costs $F = 2 \\cdot \\text{multiply-adds}$, and so does each of the maps that its
derivatives are made of (output y(x, w), input gradient dx(g, w), weight gradient dw(x, g)), since the three are one
trilinear form read three ways.

A gradient is a forward map, an input gradient and a weight gradient: 3 F an example. This is what the query costs.

A second-order inner step differentiates that gradient once more. Each of its 3 maps has two operands and needs one
more map for the cotangent of each: 3 F + 2 * 3 F = 9 F an example.

Nobody wants the gradient of the data, so the first layer has no dx in the gradient (2 F), and in the second order only
the forward map, dw, and the cotangents of y's w and of dw's g (4 F).

With 9 and 3 on every layer the counts would be 318 MFLOP a task for `omniglot_paper`, 5.3 GFLOP for `conv4_heavy`,
21 GFLOP a step for `proto60` and 25 GFLOP a task for `mini84`. Elementwise work is not counted.
"""

import itertools

from .workloads import Workload

FORWARD, GRADIENT, SECOND_ORDER = (1, 1), (2, 3), (4, 9)  # of the first layer, of a later one


def forward(workload: Workload) -> tuple[int, int]:
    """FLOP of one example's forward pass in the first layer, and in the others together."""
    layers = []
    if workload.network == "mlp":
        sizes = [1, workload.width, workload.width, 1]
        layers = [2 * a * b for a, b in itertools.pairwise(sizes)]
    else:
        channels, side = workload.channels, workload.image_size
        for _ in range(4):
            out = side if workload.stride == 1 else -(-side // 2)
            layers.append(2 * out * out * 9 * channels * workload.width)
            channels, side = workload.width, out // 2 if workload.stride == 1 else out
        if workload.has_head:
            features = workload.width * (1 if workload.spatial_mean else side * side)
            layers.append(2 * features * workload.way)
    return layers[0], sum(layers[1:])


def _cost(workload: Workload, multiples: tuple[int, int]) -> int:
    return sum(each * times for each, times in zip(forward(workload), multiples, strict=True))


def step(workload: Workload) -> int:
    """FLOP of one step (of one test task, for `meta_test`)."""
    if workload.learner == "meta_test":
        return (workload.support + workload.query) * _cost(workload, FORWARD)
    if workload.learner == "prototypical":
        return (workload.support + workload.query) * _cost(workload, GRADIENT)
    inner = workload.inner_steps * workload.support * _cost(workload, SECOND_ORDER)
    return workload.tasks * (inner + workload.query * _cost(workload, GRADIENT))
