"""A workload in metakit's public pieces, as a user would write it."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import metakit as mk

from .workloads import Workload

RATE = 1e-3


def network(workload: Workload) -> Any:
    """The network of a workload, with weights that are about to be replaced."""
    key = jax.random.key(0)
    if workload.network == "mlp":
        return mk.nn.MLP(1, 1, workload.width, 2, key=key)
    return mk.nn.Conv4(
        workload.channels,
        workload.image_size,
        out_size=workload.way if workload.has_head else None,
        width=workload.width,
        stride=workload.stride,
        spatial_mean=workload.spatial_mean,
        key=key,
    )


def leaves(net: Any) -> dict[str, Any]:
    """The arrays of a network (or of its gradient) by the names that all sides share."""
    if isinstance(net, mk.nn.MLP):
        layers = {f"linear{i}": layer for i, layer in enumerate((*net.hidden, net.head))}
        return {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")}
    named: dict[str, Any] = {}
    for i, block in enumerate(net.blocks):
        named |= {f"conv{i}.weight": block.conv.weight, f"conv{i}.bias": block.conv.bias}
        named |= {f"norm{i}.scale": block.norm.scale, f"norm{i}.bias": block.norm.bias}
    return named if net.head is None else named | {"head.weight": net.head.weight, "head.bias": net.head.bias}


def _mirror(workload: Workload, images: np.ndarray) -> np.ndarray:
    """SAME with stride 2 pads even images at the lower right, PyTorch's `padding=1` effectively at the upper left.

    On mirrored images, with mirrored kernels, the two are the same network, since the mean over space at its end does
    not see the mirror. So each side keeps the padding that it is fast at, and both compute the same numbers.
    """
    return images[..., ::-1, ::-1] if workload.stride == 2 else images


def to_metakit(workload: Workload, name: str, value: np.ndarray) -> np.ndarray:
    """Weights from the shared layout, `[out, in, kh, kw]` and features in the order `c h w`."""
    if name.startswith("conv") and name.endswith("weight"):
        return _mirror(workload, value).transpose(2, 3, 1, 0)
    if name == "head.weight" and not workload.spatial_mean:
        side = round((value.shape[0] // workload.width) ** 0.5)
        return value.reshape(workload.width, side, side, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return value


def from_metakit(workload: Workload, name: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_metakit`."""
    if name.startswith("conv") and name.endswith("weight"):
        return _mirror(workload, value.transpose(3, 2, 0, 1))
    if name == "head.weight" and not workload.spatial_mean:
        side = round((value.shape[0] // workload.width) ** 0.5)
        return value.reshape(side, side, workload.width, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value


@functools.cache
def _many_steps() -> Callable[..., Any]:
    """Several outer steps on the same tasks in one dispatch, as `mk.train.run_steps` takes them on new tasks."""

    @functools.partial(eqx.filter_jit, donate="all-except-first", compiler_options=mk.compiler_options())
    def many(fixed: Any, state: Any) -> tuple[Any, Any]:
        algorithm, optimiser, tasks, mesh, count = fixed
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(arrays: Any, _: None) -> tuple[Any, Any]:
            state = eqx.combine(arrays, static)
            state, diagnostics = mk.train.step(algorithm, optimiser, state, tasks, mesh=mesh)
            return eqx.filter(state, eqx.is_array), diagnostics

        arrays, diagnostics = jax.lax.scan(body, arrays, None, length=count)
        return eqx.combine(arrays, static), diagnostics

    return many


class MetakitSide:
    """The questions of a worker, answered by metakit."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray], data: dict[str, np.ndarray], devices: int):
        self.workload = workload
        dtype = jnp.result_type(float)
        net = network(workload)
        values = [jnp.asarray(to_metakit(workload, name, weights[name]), dtype) for name in leaves(net)]
        net = eqx.tree_at(lambda n: list(leaves(n).values()), net, values)
        way = None if workload.network == "mlp" else workload.way

        def arrays(part: str) -> tuple[Any, Any]:
            x, y = data[f"{part}_x"], data[f"{part}_y"]
            x = x if way is None else _mirror(workload, x)
            return jnp.asarray(x, dtype), jnp.asarray(y, dtype if way is None else jnp.int32)

        def episode(support: tuple[Any, Any], query: tuple[Any, Any]) -> mk.Episode:
            return mk.Episode(mk.Examples(*support, way), mk.Examples(*query, way))

        self.tasks = eqx.filter_vmap(episode)(arrays("support"), arrays("query"))
        if workload.learner == "maml":
            self.algorithm = mk.maml
            self.learner: Any = mk.maml.MAML(
                net,
                inner=mk.inner.SGD(workload.inner_rate),
                num_steps=workload.inner_steps,
                loss=mk.losses.squared_error if way is None else mk.losses.cross_entropy,
                norm_policy="transductive",
            )
        else:
            self.algorithm = mk.prototypical
            self.learner = mk.prototypical.Prototypical(net, norm_policy="joint")
        self.sampler = self._sampler(data)
        self.optimiser = mk.train.adam(RATE)
        self.state = mk.train.init(self.learner, self.optimiser, key=jax.random.key(0))
        self.mesh = None
        if devices > 1:
            self.mesh = mk.sharding.task_mesh(devices)
            self.state = mk.sharding.replicate(self.state, self.mesh)
            if workload.learner != "meta_test":  # which draws its own
                self.tasks = mk.sharding.shard_tasks(self.tasks, self.mesh)

    def _sampler(self, data: dict[str, np.ndarray]) -> Any:
        if self.workload.learner == "meta_test":
            way, shot, queries = self.workload.way, self.workload.shot, self.workload.queries
            return mk.tasks.Episodes(mk.tasks.ImagePool(data["pool"]), way=way, shot=shot, queries=queries)
        return mk.tasks.Sinusoid(self.workload.shot, self.workload.queries) if self.workload.sampled else None

    def step(self) -> int:
        """One outer step in one call."""
        if self.sampler is not None:
            return self.many()
        self.state, diagnostics = mk.train.step(self.algorithm, self.optimiser, self.state, self.tasks, mesh=self.mesh)
        jax.block_until_ready((self.state.learner, diagnostics.loss))
        return 1

    def many(self) -> int:
        """As many steps in one call as the workload says."""
        count = self.workload.steps_per_call
        if self.workload.learner == "meta_test":
            jax.block_until_ready(self._scores(self.learner, self.sampler))
        elif self.workload.sampled:
            self.state, _ = mk.train.run_steps(
                self.algorithm,
                self.optimiser,
                self.state,
                self.sampler,
                num_steps=count,
                meta_batch=self.workload.tasks,
                mesh=self.mesh,
            )
        else:
            fixed = (self.algorithm, self.optimiser, self.tasks, self.mesh, count)
            self.state, diagnostics = _many_steps()(fixed, self.state)
            jax.block_until_ready((self.state.learner, diagnostics.loss))
        return count

    def _scores(self, learner: Any, sampler: Any, times: int = 1) -> Any:
        return mk.evaluate.scores(
            self.algorithm,
            learner,
            sampler,
            jax.random.key(1),
            num_tasks=times * self.workload.steps_per_call,
            metrics={"accuracy": mk.metrics.accuracy},
            mesh=self.mesh,
        )

    def gradient(self, adjoint: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """A jitted function that returns the meta-loss and its gradient, and its arguments.

        **Arguments:** `adjoint`, one of `mk.inner` instead of the learner's own.
        """
        mesh = None if self.workload.learner == "meta_test" else self.mesh
        learner = self.learner if adjoint is None else mk.maml.with_adjoint(self.learner, adjoint)

        @functools.partial(eqx.filter_jit, compiler_options=mk.compiler_options())
        def gradient(learner: Any, tasks: Any) -> Any:
            return mk.sharding.meta_gradient(self.algorithm, learner, tasks, trainable=mk.trainable(learner), mesh=mesh)

        return gradient, (learner, self.tasks)

    def check(self) -> tuple[float, dict[str, np.ndarray]]:
        """The loss of the tasks and its gradient, by shared names."""
        gradient, arguments = self.gradient()
        result = gradient(*arguments)
        net = result.gradient.model if self.workload.learner == "maml" else result.gradient.embed
        named = {name: from_metakit(self.workload, name, np.asarray(value)) for name, value in leaves(net).items()}
        return float(result.loss), named

    def temporary_bytes(self, times: int) -> int:
        """Scratch memory of one compiled step by XLA's own account, on so many times the tasks."""
        if self.workload.learner == "meta_test":
            program = eqx.filter_jit(
                functools.partial(self._scores, times=times), compiler_options=mk.compiler_options()
            )
            arguments: tuple[Any, ...] = (self.learner, self.sampler)
        else:
            rows = np.tile(np.arange(self.workload.tasks), times)
            program = eqx.filter_jit(self._one_step, compiler_options=mk.compiler_options())
            arguments = (self.state, jax.tree.map(lambda leaf: leaf[rows], self.tasks))
        return program.lower(*arguments).compile().compiled.memory_analysis().temp_size_in_bytes

    def _one_step(self, state: Any, tasks: Any) -> Any:
        return mk.train.step(self.algorithm, self.optimiser, state, tasks, mesh=self.mesh)
