"""How exact the adjoints are, in float64: the part `exact` of `python -m tests.bench.bilevel`.

The largest relative error of any leaf, by `mk.check_hypergradient` and against closed forms.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metakit as mk

Say = Callable[[str], None]

_EXACT = (mk.inner.Checkpointed(), mk.inner.MixedMode(), mk.inner.MixedMode(checkpointed=True), mk.inner.Forward())
_SOLVERS: dict[str, Callable[[Any], mk.inner.AbstractSolver]] = {
    "SGD": lambda hyper: mk.inner.SGD(hyper["rate"]),
    "momentum": lambda hyper: mk.inner.Momentum(hyper["rate"], hyper["momentum"]),
    "Adam": lambda hyper: mk.inner.Optax(optax.adam, learning_rate=hyper["rate"], eps_root=1e-2),
}


def _relative(tree: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    # By NumPy, whose maximum of a NaN is NaN.
    return float(np.max([jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)) for a, b in pairs]))


def _small_network() -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), 6)
    start = {"a": 0.5 * jax.random.normal(keys[0], (3, 4)), "b": 0.5 * jax.random.normal(keys[1], (4, 2))}
    data = [jax.random.normal(key, shape) for key, shape in zip(keys[2:], [(10, 3), (10, 2)] * 2, strict=True)]
    hyper = {"start": start, "rate": jnp.asarray(0.05), "log_decay": jnp.asarray(-2.0), "weights": jnp.ones(10)}
    return hyper, data, lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]


def agreement(say: Say, steps: tuple[int, ...]) -> dict[str, float]:
    """Exact adjoints against the unroll, forward mode and central differences, for every kind of input."""
    hyper, data, predict = _small_network()

    def inner(w: Any, hyper: Any, data: Any, step: Any) -> Any:
        del step
        residual = predict(w, data[0]) - data[1]
        squares = jnp.sum(w["a"] ** 2) + jnp.sum(w["b"] ** 2)
        return jnp.mean(hyper["weights"] * jnp.sum(residual**2, 1)) + jnp.exp(hyper["log_decay"]) * squares

    def outer(w: Any, hyper: Any, data: Any) -> Any:
        del hyper
        return jnp.mean((predict(w, data[2]) - data[3]) ** 2)

    found: dict[str, float] = {}
    for name, solver in _SOLVERS.items():
        for count in steps:
            say(f"{name}, {count} steps")
            whole = hyper | ({"momentum": jnp.asarray(0.8)} if name == "momentum" else {})
            problem = mk.Bilevel(inner, outer, solver, count, lambda hyper: hyper["start"])
            report = mk.check_hypergradient(
                problem, whole, None, data, adjoint=mk.inner.Unrolled(), against=_EXACT, tolerance=1e-8
            )
            for row in report.rows:
                key = row.against if row.against in ("differences", "jvp") else "adjoints"
                found[key] = float(np.maximum(found.get(key, 0.0), row.error))
    return found


def reversible(say: Say, num_steps: int, width: int) -> dict[str, float]:
    """A network of 10,000 parameters: against the unroll, and the same reversal in floating point."""
    keys = jax.random.split(jax.random.key(0), 2)
    arrays, static = eqx.partition(mk.nn.MLP(20, 1, width, 2, jnp.tanh, key=keys[0]), eqx.is_array)
    x = jax.random.normal(keys[1], (64, 20))
    data = {"x": x, "y": jnp.sin(x[:, :1]), "log_decay": jnp.asarray(-7.0)}
    solver, adjoint = mk.inner.Momentum(0.05, 0.9), mk.inner.Reversible(0.89)

    def inner(params: Any, args: Any, step: Any) -> Any:
        del step
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        error = jnp.mean((eqx.combine(params, static)(args["x"]) - args["y"]) ** 2)
        return error + jnp.exp(args["log_decay"]) * squares

    def outer(inputs: Any, adjoint: Any) -> Any:
        params, args, solver = inputs
        adapted = adjoint.solve(inner, solver, params, args, num_steps).params
        return inner(adapted, args | {"x": args["x"][::-1] + 0.1}, None)

    def gradient(solver: Any, adjoint: Any) -> tuple[Any, int]:
        say(f"{num_steps} steps by {type(adjoint).__name__}")
        inputs = (arrays, data, solver)
        compiled = eqx.filter_jit(eqx.filter_grad(outer)).lower(inputs, adjoint).compile()
        # The plain unroll is only compiled: its memory is asked for, not its gradient.
        plain = isinstance(adjoint, mk.inner.Unrolled)
        return None if plain else compiled(inputs, adjoint), compiled.compiled.memory_analysis().temp_size_in_bytes

    ours, small = gradient(solver, adjoint)
    effective = adjoint.effective(solver, arrays)
    expected, _ = gradient(effective, mk.inner.Checkpointed())
    _, large = gradient(effective, mk.inner.Unrolled())
    return {
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(arrays))),
        # The backward pass compares every bit of weights, velocities and buffers with the start, or gives NaN.
        "restored": float(all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(ours))),
        "error": _relative(ours, expected),
        "memory of the unroll's": small / large,
        "distance of the float reversal": _float_reversal(inner, effective, arrays, data, num_steps),
    }


def _float_reversal(inner: Any, solver: Any, params: Any, data: Any, num_steps: int) -> float:
    """How far from the start the equations, undone in floating point, arrive: relative to the start's norm."""

    @jax.jit
    def back(end: Any) -> Any:
        def step(carry: Any, index: Any) -> Any:
            params, velocity = carry
            params = jax.tree.map(lambda p, v: p + solver.rate.value * v, params, velocity)
            slope = jax.grad(inner)(params, data, index)
            return (params, jax.tree.map(lambda v, g: (v - g) / solver.decay.value, velocity, slope)), None

        return jax.lax.scan(step, end, jnp.arange(num_steps), reverse=True)[0][0]

    solution = jax.jit(lambda p: mk.inner.Unrolled().solve(inner, solver, p, data, num_steps))(params)
    return _relative(back((solution.params, solution.state)), params)


def implicit(say: Say, num_steps: int) -> dict[str, float]:
    """Ridge regression against its closed form; a converged network against the differentiated loop."""
    say("implicit differentiation")
    keys = jax.random.split(jax.random.key(1), 4)
    data = [jax.random.normal(key, shape) for key, shape in zip(keys, [(12, 4), (12,), (9, 4), (9,)], strict=True)]

    def squared(w: Any, log_penalty: Any, data: Any, step: Any) -> Any:
        del step
        return jnp.sum((data[0] @ w - data[1]) ** 2) + jnp.exp(log_penalty) * jnp.sum(w**2)

    def valid(w: Any, log_penalty: Any, data: Any) -> Any:
        del log_penalty
        return jnp.mean((data[2] @ w - data[3]) ** 2)

    def exact(log_penalty: Any) -> Any:
        gram = data[0].T @ data[0] + jnp.exp(log_penalty) * jnp.eye(4)
        return valid(jnp.linalg.solve(gram, data[0].T @ data[1]), log_penalty, data)

    ridge = mk.Bilevel(squared, valid, mk.inner.SGD(0.01), 1000)
    at = jnp.asarray(1.5)
    ours = mk.hypergradient(ridge, at, jnp.zeros(4), data, adjoint=mk.inner.Implicit()).gradient

    hyper, batch, predict = _small_network()

    def inner(w: Any, hyper: Any, data: Any, step: Any) -> Any:
        del step
        residual, squares = predict(w, data[0]) - data[1], jnp.sum(w["a"] ** 2) + jnp.sum(w["b"] ** 2)
        return jnp.mean(hyper["weights"] * jnp.sum(residual**2, 1)) + jnp.exp(hyper["log_decay"]) * squares

    curved = mk.Bilevel(
        inner,
        lambda w, hyper, data: jnp.mean((predict(w, data[2]) - data[3]) ** 2),
        mk.inner.Momentum(0.1, 0.9),
        num_steps,
    )
    moving = {name: hyper[name] for name in ("log_decay", "weights")}

    @eqx.filter_jit
    def gradient(adjoint: Any) -> Any:
        return mk.hypergradient(curved, moving, hyper["start"], batch, adjoint=adjoint).gradient

    network = _relative(gradient(mk.inner.Implicit(tolerance=None)), gradient(mk.inner.MixedMode()))
    return {"ridge": _relative(ours, jax.grad(exact)(at)), "network": network}


# What each figure may be at most. At smoke size the loops of the others are too short to converge, or to be large.
_AGREEMENT = {"adjoints": 1e-8, "jvp": 1e-8, "differences": 1e-8}
_LIMITS = {
    "agreement": _AGREEMENT,
    "reversible": {"error": 1e-8, "memory of the unroll's": 0.05},
    "implicit": {"ridge": 1e-6, "network": 1e-4},
}


def require(found: dict[str, dict[str, float]], limits: dict[str, dict[str, float]]) -> None:
    """Raise for a figure beyond its limit, or NaN."""
    beyond = [
        f"{part}, {name}: {found[part][name]:.1e} (at most {most:g})"
        for part, each in limits.items()
        for name, most in each.items()
        if not found[part][name] <= most
    ]
    if beyond:
        raise AssertionError("; ".join(beyond))


def exact(smoke: bool, say: Say) -> dict[str, dict[str, float]]:
    """All of it, within its limits."""
    with jax.enable_x64(True):
        found = {
            "agreement": agreement(say, (2,) if smoke else (1, 10, 50)),
            "reversible": reversible(say, 20 if smoke else 1000, 8 if smoke else 90),
            "implicit": implicit(say, 50 if smoke else 2000),
        }
    require(found, {"agreement": _AGREEMENT} if smoke else _LIMITS)
    return found
