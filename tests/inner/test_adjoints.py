"""Adjoints against each other, against finite differences, and what they cost."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from inner_problems import EXACT, assert_gradient_matches_differences, half_squared, network_problem

import metakit as mk

OBJECTIVE, PARAMS, ARGS = network_problem()
SOLVERS = {
    "sgd": mk.inner.SGD(0.05),
    "momentum": mk.inner.Momentum(0.01, 0.9),
    "nesterov": mk.inner.Momentum(0.01, 0.9, nesterov=True),
    "per_parameter": mk.inner.PerParameterSGD.like(PARAMS, 0.05),
    "per_layer_per_step": mk.inner.PerLayerPerStepSGD.like(PARAMS, 0.05, num_steps=10),
    # A larger eps_root keeps Adam's fourth derivatives small enough for finite differences to reach 1e-8.
    "adam": mk.inner.Optax(optax.adam, learning_rate=0.05, eps_root=1e-2),
}
ALL = {
    **EXACT,
    "first_order": mk.inner.FirstOrder(),
    "truncated": mk.inner.Truncated(100),
    "auto": mk.inner.Auto(),
}


def outcome(inputs, adjoint, num_steps, *, observe=False):
    """A scalar of everything a solution holds, so that every cotangent is at work."""
    params, args, solver = inputs
    watch = (lambda params, args, step: jnp.sum(params["w1"] ** 3) * args["decay"]) if observe else None
    solution = adjoint.solve(OBJECTIVE, solver, params, args, num_steps, observe=watch)
    total = jnp.sum(jnp.sin(solution.params["w1"])) + jnp.sum(jnp.cos(solution.params["w2"]))
    total = total + jnp.sum(solution.losses * jnp.arange(1.0, num_steps + 1)) / 10
    return total + jnp.sum(solution.observed * jnp.arange(1.0, num_steps + 1)) if observe else total


FAST = [("sgd", 1), ("momentum", 2), ("adam", 4)]
SLOW = [
    ("sgd", 50),
    ("momentum", 50),
    ("adam", 50),
    ("sgd", 10),
    ("momentum", 10),
    ("nesterov", 4),
    ("per_parameter", 4),
    ("per_layer_per_step", 4),
    ("adam", 10),
]


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [*FAST, *(pytest.param(*case, marks=[pytest.mark.slow, pytest.mark.optimised]) for case in SLOW)],
)
def test_exact_adjoints_agree_with_each_other_and_with_differences(solver, num_steps):
    """Catches a dropped or doubled term in any adjoint, for any input: parameters, data, hyperparameters of the loss
    and of the solver."""
    inputs = (PARAMS, ARGS, SOLVERS[solver])
    gradients = {
        name: eqx.filter_jit(eqx.filter_grad(outcome))(inputs, adjoint, num_steps, observe=True)
        for name, adjoint in EXACT.items()
    }
    reference = jax.tree.leaves(gradients["unrolled"])
    assert_gradient_matches_differences(
        lambda tree: outcome(tree, EXACT["unrolled"], num_steps, observe=True), inputs, gradients["unrolled"]
    )
    for name in set(EXACT) - {"unrolled"}:
        for actual, expected in zip(jax.tree.leaves(gradients[name]), reference, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("adjoint", ALL.values(), ids=ALL.keys())
def test_every_adjoint_takes_the_path_of_a_plain_loop(adjoint):
    """Catches an off-by-one in the step index, a lost segment of a checkpointed loop, and losses that belong to
    another step: 11 steps are 3 segments of 3 and 2 left over."""
    params, velocity, losses, points = {k: PARAMS[k] for k in ("w1", "w2")}, None, [], []
    for step in range(11):
        loss, gradient = jax.value_and_grad(OBJECTIVE)(params, ARGS, jnp.asarray(step))
        velocity = gradient if velocity is None else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - 0.01 * v, params, velocity)
        losses.append(loss)
        points.append(params["w1"][0, 0] + step)

    def observe(params, args, step):
        del args
        return params["w1"][0, 0] + step.astype(params["w1"].dtype)

    solution = adjoint.solve(OBJECTIVE, SOLVERS["momentum"], PARAMS, ARGS, 11, observe=observe)
    for name in ("w1", "w2"):
        np.testing.assert_allclose(solution.params[name], params[name], rtol=1e-12)
        np.testing.assert_allclose(solution.state[name], velocity[name], rtol=1e-12)
    np.testing.assert_allclose(solution.losses, jnp.stack(losses), rtol=1e-12)
    np.testing.assert_allclose(solution.observed, jnp.stack(points), rtol=1e-12)
    assert solution.params["name"] == PARAMS["name"]


@pytest.mark.parametrize("adjoint", ALL.values(), ids=ALL.keys())
def test_no_steps_return_the_parameters(adjoint):
    """Catches a loop that takes a step anyway, or fails on an empty one; its gradient is the identity."""
    solution = adjoint.solve(half_squared, mk.inner.SGD(0.1), jnp.ones(3), jnp.ones(3), 0, observe=lambda p, a, s: p)
    np.testing.assert_array_equal(solution.params, jnp.ones(3))
    assert solution.losses.shape == (0,)
    assert solution.observed.shape == (0, 3)
    gradient = jax.grad(lambda w: jnp.sum(adjoint.solve(half_squared, mk.inner.SGD(0.1), w, w, 0).params))(jnp.ones(3))
    np.testing.assert_array_equal(gradient, jnp.ones(3))


def test_first_order_gradients_that_survive_are_the_documented_ones():
    """Catches a stop-gradient on more than the inner gradients: the rate keeps its direct effect, which for one step
    is all of it, and the data lose theirs."""

    def adapted_sum(inputs, adjoint, num_steps):
        params, args, solver = inputs
        return jnp.sum(jnp.sin(adjoint.solve(OBJECTIVE, solver, params, args, num_steps).params["w1"]))

    inputs = (PARAMS, ARGS, SOLVERS["sgd"])
    gradient = eqx.filter_jit(eqx.filter_grad(adapted_sum))
    exact, first = (gradient(inputs, adjoint, 1) for adjoint in (mk.inner.Unrolled(), mk.inner.FirstOrder()))
    np.testing.assert_allclose(first[2].rate.value, exact[2].rate.value, rtol=1e-12)
    assert float(jnp.abs(exact[1]["x"]).max()) > 0
    for leaf in jax.tree.leaves(first[1]):
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))

    three = gradient(inputs, mk.inner.FirstOrder(), 3)
    solution = mk.inner.FirstOrder().solve(OBJECTIVE, SOLVERS["sgd"], PARAMS, ARGS, 3)
    np.testing.assert_allclose(three[0]["w1"], jnp.cos(solution.params["w1"]), rtol=1e-12)
    # θ_K = θ_0 - α Σ g: the gradient of the rate is -Σ g · dout/dθ_K.
    moved = (solution.params["w1"] - PARAMS["w1"]) / 0.05
    np.testing.assert_allclose(three[2].rate.value, jnp.sum(moved * jnp.cos(solution.params["w1"])), rtol=1e-10)


def test_stopping_the_parameters_would_give_zero():
    """The negative control: it shows that the tests above would notice the stop-gradient in the wrong place."""

    class StopsParameters(mk.inner.AbstractSolver):
        def init(self, params):
            return None

        def update(self, grads, state, params, step):
            params, grads = jax.lax.stop_gradient((params, grads))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        def max_steps(self):
            return None

    def outer(w):
        return jnp.sum(mk.inner.Unrolled().solve(half_squared, StopsParameters(), w, jnp.ones(3), 1).params)

    np.testing.assert_array_equal(jax.grad(outer)(jnp.ones(3)), jnp.zeros(3))


@pytest.mark.parametrize("adjoint", ALL.values(), ids=ALL.keys())
def test_vmap_over_problems_is_a_loop(adjoint):
    """Catches a custom rule that does not batch: closed-over labels or keys are the usual culprits."""
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), {k: ARGS[k] for k in ("x", "y")})

    def gradient(data):
        def loss(params):
            return jnp.sum(adjoint.solve(OBJECTIVE, SOLVERS["sgd"], params, {**ARGS, **data}, 3).params["w2"] ** 2)

        return eqx.filter_grad(loss)(PARAMS)["w1"]

    together = jax.jit(jax.vmap(gradient))(batch)
    one = jax.jit(gradient)
    for i in range(2):
        np.testing.assert_allclose(together[i], one({k: leaf[i] for k, leaf in batch.items()}), rtol=1e-12)


CUSTOM_RULES = {
    "MixedMode": (mk.inner.MixedMode(), mk.inner.SGD(0.1)),
    "Truncated": (mk.inner.Truncated(1), mk.inner.SGD(0.1)),
    "Forward": (mk.inner.Forward(), mk.inner.SGD(0.1)),
    "Implicit": (mk.inner.Implicit(tolerance=None), mk.inner.SGD(0.1)),
    "Reversible": (mk.inner.Reversible(), mk.inner.Momentum(0.1, 0.9)),
}


@pytest.mark.parametrize("name", CUSTOM_RULES)
def test_a_custom_rule_refuses_a_closed_over_input(name):
    """Catches a silent zero, or an error that names nothing, where a differentiable input is not in args."""
    adjoint, solver = CUSTOM_RULES[name]

    def outer(scale):
        def objective(w, args, step):
            return scale * jnp.sum(w**2)

        return jnp.sum(adjoint.solve(objective, solver, jnp.ones(2), None, 2).params)

    message = r"closes over float64\[\], an array that an enclosing jit, vmap or grad is tracing"
    for transformed, scale in ((jax.grad(outer), jnp.ones(())), (jax.jit(outer), jnp.ones(()))):
        with pytest.raises(ValueError, match=message):
            transformed(scale)
    with pytest.raises(ValueError, match=message):
        jax.vmap(jax.grad(outer))(jnp.ones(2))


@pytest.mark.parametrize("name", ["Forward", "Implicit", "Reversible"])
def test_a_custom_rule_refuses_a_closed_over_input_of_observe(name):
    """Catches an error of JAX's own that names neither the array nor what closed over it."""
    adjoint, solver = CUSTOM_RULES[name]

    def outer(scale):
        observe = lambda w, args, step: scale * w
        solution = adjoint.solve(lambda w, args, step: jnp.sum(w**2), solver, jnp.ones(2), None, 2, observe=observe)
        return jnp.sum(solution.params) + jnp.sum(solution.observed)

    with pytest.raises(ValueError, match=r"^observe closes over float64\[\], an array"):
        jax.grad(outer)(jnp.ones(()))


@pytest.mark.parametrize(
    "adjoint",
    [
        mk.inner.Unrolled(),
        mk.inner.MixedMode(),
        mk.inner.Truncated(40),
        mk.inner.Forward(),
        mk.inner.Implicit(tolerance=0.1),
        mk.inner.Implicit(lx.GMRES(rtol=1e-2, atol=1e-2), tolerance=0.1),
        mk.inner.Implicit(mk.inner.Neumann(50, 0.3), tolerance=0.1),
    ],
    ids=lambda adjoint: type(adjoint).__name__ + type(getattr(adjoint, "linear_solver", None)).__name__,
)
def test_parameters_of_two_dtypes(adjoint):
    """Catches a solver that is handed vectors of two dtypes, and an implicit promotion: the suite forbids those.

    Every minimum is the target, so the derivative of the sum of five is 5; the tolerance is bfloat16's last bit, 2^-8,
    in each of its roundings.
    """
    params = {"single": jnp.zeros(3, jnp.float32), "half": jnp.zeros(2, jnp.bfloat16)}

    def objective(w, target, step):
        return 0.5 * jnp.sum((w["single"] - target) ** 2) + jnp.sum((w["half"].astype(jnp.float32) - target) ** 2)

    def total(target):
        found = adjoint.solve(objective, mk.inner.SGD(0.3), params, target, 40).params
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(found))

    gradient = jax.grad(total)(jnp.ones((), jnp.float32))
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, 5.0, rtol=4 * 2**-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mk.inner.Implicit(0.1),
            r"linear_solver must be one of lineax .*got 0\.1\. .*Implicit\(damping=0\.1\)",
        ),
        (lambda: mk.inner.Implicit(damping="0.1"), r"Implicit's damping must be a number, got '0\.1'"),
        (lambda: mk.inner.Implicit(tolerance=True), r"Implicit's tolerance must be a number, got True"),
        (lambda: mk.inner.Truncated(2.5), r"Truncated's last must be a whole number, got 2\.5"),
        (lambda: mk.inner.Neumann(2.5, 0.1), r"Neumann's num_terms must be a whole number, got 2\.5"),
        (lambda: mk.inner.Neumann(2, "fast"), r"Neumann's rate must be a number, got 'fast'"),
        (lambda: mk.inner.Reversible("0.5"), r"Reversible's smallest_decay must be a number, got '0\.5'"),
        (lambda: mk.inner.MixedMode(100), r"MixedMode's checkpointed must be True or False, got 100"),
        (lambda: mk.inner.Auto("1GB"), r"memory_limit, in bytes, must be a whole number, got '1GB'"),
    ],
)
def test_an_option_of_another_type(make, message):
    """Catches a comparison of text and number, in whose error the argument has no name."""
    with pytest.raises(TypeError, match=message):
        make()


def test_mixed_mode_can_be_differentiated_twice():
    """Catches a wrong Hessian of the meta-loss: with a forward rule that calls its own custom_vjp function, JAX 0.10.2
    gives silently wrong second derivatives inside a scan."""

    def outer(w, adjoint):
        def quartic(w, args, step):
            return jnp.sum(w**4) + jnp.prod(w)

        return jnp.sum(adjoint.solve(quartic, mk.inner.SGD(0.05), w, None, 3).params ** 2)

    w = jnp.asarray([0.3, -0.7])

    def twice(adjoint):
        return jax.jacrev(jax.grad(outer))(w, adjoint)

    np.testing.assert_allclose(twice(mk.inner.MixedMode()), twice(mk.inner.Unrolled()), rtol=1e-10)


def bytes_of_meta_gradient(adjoint, num_steps):
    keys = jax.random.split(jax.random.key(0), 3)
    model = mk.nn.MLP(8, 1, 32, 3, jnp.tanh, key=keys[0])
    arrays, static = eqx.partition(model, eqx.is_array)
    data = (jax.random.normal(keys[1], (256, 8)), jax.random.normal(keys[2], (256, 1)))

    def objective(params, args, step):
        x, y = args
        return jnp.mean((eqx.combine(params, static)(x) - y) ** 2)

    def outer(params, data):
        adapted = adjoint.solve(objective, mk.inner.SGD(0.1), params, data, num_steps).params
        return objective(adapted, data, None)

    analysis = jax.jit(jax.grad(outer)).lower(arrays, data).compile().memory_analysis()
    return analysis.temp_size_in_bytes, mk._tree.tree_bytes(arrays)


@pytest.mark.optimised
def test_memory_of_64_steps():
    """Catches stored activations in the adjoints that promise not to store them, by the compiler's own analysis."""
    unrolled, parameters = bytes_of_meta_gradient(mk.inner.Unrolled(), 64)
    mixed, _ = bytes_of_meta_gradient(mk.inner.MixedMode(), 64)
    checkpointed, _ = bytes_of_meta_gradient(mk.inner.Checkpointed(), 64)
    first_order, _ = bytes_of_meta_gradient(mk.inner.FirstOrder(), 64)
    assert unrolled > 64 * 3 * 256 * 32 * 8  # K x the activations of three layers, at the least
    assert mixed < 0.25 * unrolled
    assert mixed < 64 * parameters + 0.1 * unrolled
    assert checkpointed < 0.15 * unrolled
    assert first_order < 0.05 * unrolled


def test_a_new_rate_is_no_new_trace():
    """Catches a rate baked into the compiled program."""
    traces = []

    @eqx.filter_jit
    def adapted(solver, w):
        traces.append(1)
        return mk.inner.Unrolled().solve(half_squared, solver, w, w, 3).params

    results = [adapted(mk.inner.SGD(rate), jnp.ones(2)) for rate in (0.1, 0.2, 1)]
    assert len(traces) == 1
    assert len({float(result[0]) for result in results}) == 3


@pytest.mark.parametrize("adjoint", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize(
    ("num_steps", "params", "solver", "error", "message"),
    [
        (-1, jnp.ones(2), mk.inner.SGD(0.1), ValueError, r"at least 0, got -1"),
        (2.0, jnp.ones(2), mk.inner.SGD(0.1), TypeError, r"Python int .* float 2\.0"),
        (1, jnp.arange(2), mk.inner.SGD(0.1), ValueError, r"params holds no floating-point array"),
        (
            3,
            jnp.ones(2),
            mk.inner.PerLayerPerStepSGD.like(jnp.ones(2), 0.1, num_steps=2),
            ValueError,
            r"num_steps=3 .* rates for 2 steps only.*num_steps <= 2 \(in evaluation as well\)",
        ),
    ],
)
def test_bad_input(adjoint, num_steps, params, solver, error, message):
    """Catches a clamped step index, an empty loop and other mistakes that would pass in silence."""
    with pytest.raises(error, match=message):
        adjoint.solve(lambda p, a, s: jnp.sum(p), solver, params, None, num_steps)
