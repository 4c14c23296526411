"""The same workloads in plain JAX: `lax.conv_general_dilated` under `vmap`, as one writes it first.

Everything but the convolution is written as fast as it goes (pooling by strided selects, not `reduce_window`), so that
the difference to metakit is the convolution's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .workloads import Workload

RATE = 1e-3
_LAYOUT = ("NCHW", "OIHW", "NCHW")


def _norm(x: Any, scale: Any, bias: Any) -> Any:
    mean = x.mean((0, 2, 3), keepdims=True)
    variance = jnp.square(x - mean).mean((0, 2, 3), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale[None, :, None, None] + bias[None, :, None, None]


def _pool(x: Any) -> Any:
    """By selects: the gradient of `max` compares with a value that XLA may round otherwise."""
    height, width = 2 * (x.shape[2] // 2), 2 * (x.shape[3] // 2)
    first, *others = (x[:, :, i:height:2, j:width:2] for i in range(2) for j in range(2))
    for other in others:
        first = jnp.where(other > first, other, first)
    return first


def apply(workload: Workload, w: dict[str, Any], x: Any) -> Any:
    """The network on a batch: outputs, or an embedding where there is no head."""
    if workload.network == "mlp":
        for i in range(3):
            x = x @ w[f"linear{i}.weight"] + w[f"linear{i}.bias"][None]
            x = jax.nn.relu(x) if i < 2 else x
        return x
    for i in range(4):
        strides, padding = (workload.stride, workload.stride), ((1, 1), (1, 1))
        x = jax.lax.conv_general_dilated(x, w[f"conv{i}.weight"], strides, padding, dimension_numbers=_LAYOUT)
        x = jax.nn.relu(_norm(x + w[f"conv{i}.bias"][None, :, None, None], w[f"norm{i}.scale"], w[f"norm{i}.bias"]))
        x = _pool(x) if workload.stride == 1 else x
    x = x.mean((2, 3)) if workload.spatial_mean else x.reshape(len(x), -1)
    return x @ w["head.weight"] + w["head.bias"][None] if workload.has_head else x


def _cross_entropy(logits: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()


def _maml_loss(
    workload: Workload, w: dict[str, Any], support_x: Any, support_y: Any, query_x: Any, query_y: Any
) -> Any:
    def loss(w: Any, x: Any, y: Any) -> Any:
        outputs = apply(workload, w, x)
        return jnp.square(outputs - y).mean() if workload.network == "mlp" else _cross_entropy(outputs, y)

    for _ in range(workload.inner_steps):
        gradient = jax.grad(loss)(w, support_x, support_y)
        w = jax.tree.map(lambda a, g: a - workload.inner_rate * g, w, gradient)
    return loss(w, query_x, query_y)


def _prototypical_loss(
    workload: Workload, w: dict[str, Any], support_x: Any, support_y: Any, query_x: Any, query_y: Any
) -> Any:
    del support_y  # sorted by class
    z = apply(workload, w, jnp.concatenate([support_x, query_x]))
    prototypes = z[: workload.support].reshape(workload.way, workload.shot, -1).mean(1)
    distances = jnp.square(z[workload.support :, None] - prototypes[None]).sum(-1)
    return _cross_entropy(-distances, query_y)


class NaiveSide:
    """The questions of a worker, answered by plain JAX."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray], data: dict[str, np.ndarray], devices: int):
        if devices != 1 or workload.sampled:
            raise ValueError("this side runs on one device, on the tasks it is given")
        self.workload = workload
        dtype = jnp.result_type(float)
        self.weights = {name: jnp.asarray(value, dtype) for name, value in weights.items()}
        self.data = tuple(
            jnp.asarray(data[name], dtype if data[name].dtype == np.float32 else jnp.int32)
            for name in ("support_x", "support_y", "query_x", "query_y")
        )
        one = functools.partial(_maml_loss if workload.learner == "maml" else _prototypical_loss, workload)
        optimiser = optax.adam(RATE)
        self.opt_state = optimiser.init(self.weights)

        def mean_loss(w: Any, *tasks: Any) -> Any:
            return jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(w, *tasks).mean()

        @jax.jit
        def step(w: Any, opt_state: Any, *tasks: Any) -> Any:
            loss, gradient = jax.value_and_grad(mean_loss)(w, *tasks)
            updates, opt_state = optimiser.update(gradient, opt_state)
            return optax.apply_updates(w, updates), opt_state, loss, gradient

        self._step = step

    def step(self) -> int:
        jax.block_until_ready(self._step(self.weights, self.opt_state, *self.data))
        return 1

    many = step

    def check(self) -> tuple[float, dict[str, np.ndarray]]:
        _, _, loss, gradient = self._step(self.weights, self.opt_state, *self.data)
        return float(loss), {name: np.asarray(value) for name, value in gradient.items()}

    def temporary_bytes(self, times: int) -> int:
        rows = np.tile(np.arange(self.workload.tasks), times)
        many = [leaf[rows] for leaf in self.data]
        compiled = self._step.lower(self.weights, self.opt_state, *many).compile()
        return compiled.memory_analysis().temp_size_in_bytes
