"""Reversible momentum: exact arithmetic, exact restoration, exact gradients, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from inner_problems import assert_gradient_matches_differences, network_problem

import metakit as mk
from metakit.inner import _fixed_point as fixed_point, _loop, _undo

OBJECTIVE, PARAMS, ARGS = network_problem()
WEIGHTS = {name: PARAMS[name] for name in ("w1", "w2")}


def numbers_of(key, shape=(50,)):
    """Integers of both signs and of every size that the arithmetic admits."""
    sign_key, size_key = jax.random.split(key)
    magnitude = 2.0 ** jax.random.uniform(size_key, shape, minval=0.0, maxval=61.9)
    return (jax.random.rademacher(sign_key, shape).astype(jnp.float64) * magnitude).astype(jnp.int64)


@pytest.mark.parametrize("decay", [0.95, 0.9, 0.5, 0.3, 0.02])
def test_a_product_with_a_decay_is_undone_to_the_last_bit(decay):
    """Catches division that rounds towards zero, a remainder of the wrong sign, and a lane whose pushes and pops are
    not each other's inverse: identity T19, for as many steps as a lane is said to hold."""
    n = fixed_point.numerator(fixed_point.snap(jnp.asarray(decay)))
    steps = fixed_point.steps_a_lane(decay)
    start = numbers_of(jax.random.key(0))

    def there(carry, _):
        number, lane, full = carry
        full = full | fixed_point.full(lane)
        # The velocity shrinks, and gradients keep it alive.
        number, lane = fixed_point.multiply(number, lane, n)
        return (number + 12345678901, lane, full), None

    def back(carry, _):
        number, lane = carry
        return fixed_point.unmultiply(number - 12345678901, lane, n), None

    begin = (start, jnp.zeros(start.shape, jnp.uint64), jnp.zeros((), bool))
    (end, lane, full), _ = jax.lax.scan(there, begin, None, length=steps)
    (restored, empty), _ = jax.lax.scan(back, (end, lane), None, length=steps)
    assert not bool(full)
    np.testing.assert_array_equal(restored, start)
    np.testing.assert_array_equal(empty, jnp.zeros(start.shape, jnp.uint64))
    assert int(jnp.max(lane)) > 0, "nothing was kept, so nothing was tested"


def test_a_lane_is_python_s_long_integer():
    """Catches a lane that drops high bits: the same pushes and pops on Python's integers of any length."""
    numerators = [int(n) for n in np.random.default_rng(0).integers(20_000, 65_535, 30)]
    number, lane, big_number, big_lane = jnp.asarray(-987654321987), jnp.zeros((), jnp.uint64), -987654321987, 0
    for n in numerators:
        number, lane = fixed_point.multiply(number, lane, jnp.asarray(n, jnp.uint64))
        block, rest = divmod(big_number % 65536, 256)
        first = block * n // 256
        size = (block + 1) * n // 256 - first
        big_lane = big_lane * 256 + rest
        big_number = big_number // 65536 * n + first + big_lane % size
        big_lane //= size
        assert (int(number), int(lane)) == (big_number, big_lane)


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.11])
def test_the_steps_of_a_lane_are_not_promised_twice(decay):
    """Catches a bound on a lane that is too generous, by the worst remainders there can be."""
    n = int(fixed_point.numerator(fixed_point.snap(jnp.asarray(decay))))
    lane = 0
    for _ in range(fixed_point.steps_a_lane(decay)):
        assert lane < 2**56
        lane = (lane * 256 + 255) // (n // 256)


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.004])
def test_a_product_with_a_decay_is_close(decay):
    """Catches low bits that are any of n values: the product must be right to 2^-44, not to 2^-36 alone, for whatever
    the lane holds."""
    n = fixed_point.numerator(fixed_point.snap(jnp.asarray(decay)))
    # Below 2^52, where float64 holds the exact product to a part of an integer.
    number = numbers_of(jax.random.key(0), (1000,)) >> 25
    lane = jax.random.bits(jax.random.key(1), (1000,), jnp.uint64) >> 8
    product, used = fixed_point.multiply(number, lane, n)
    error = product.astype(jnp.float64) - number.astype(jnp.float64) * n.astype(jnp.float64) / 65536
    assert float(jnp.max(jnp.abs(error))) <= 256
    for actual, expected in zip(fixed_point.unmultiply(product, used, n), (number, lane), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_rounding_to_a_fraction_keeps_the_gradient():
    """Catches decays that lose their gradient to the rounding, and invalid ones that pass."""
    value, slope = jax.value_and_grad(lambda decay: fixed_point.snap(decay))(jnp.asarray(0.9))
    assert abs(float(value) - 0.9) <= 0.5 / 65536
    assert float(slope) == 1.0
    assert float(value) * 65536 == round(float(value) * 65536)
    for bad in (0.0, 1.0, -0.1, 1.5, 0.0039, jnp.nan):
        assert bool(jnp.isnan(fixed_point.snap(jnp.asarray(bad))))


def test_additions_cancel_whatever_the_sign():
    """Catches rounding that is not odd, such as floor, with which a step and its undoing differ by one bit."""
    values = jax.random.normal(jax.random.key(0), (1000,))
    np.testing.assert_array_equal(fixed_point.encode(-values), -fixed_point.encode(values))
    error = jnp.abs(fixed_point.decode(fixed_point.encode(values), jnp.float64) - values)
    assert float(jnp.max(error)) <= 2.0**-53


def there_and_back(params, args, solver, num_steps, objective=OBJECTIVE, smallest_decay=0.5):
    """The integers before a loop, after it, and after it has been undone, from one compiled program each."""
    solver = mk.inner.Reversible().effective(solver, params)
    inputs, loop = _loop.prepare(objective, solver, params, args, num_steps, None)
    indices = jnp.arange(num_steps, dtype=jnp.int32)

    @eqx.filter_jit
    def forward(inputs):
        begin = _undo.begin(inputs, loop, smallest_decay)
        step = lambda numbers, index: (_undo.advance(numbers, inputs, loop, smallest_decay, index)[0], None)
        return begin, jax.lax.scan(step, begin, indices)[0]

    @eqx.filter_jit
    def backward(inputs, end):
        step = lambda numbers, index: (_undo.retreat(numbers, inputs, loop, smallest_decay, index), None)
        return jax.lax.scan(step, end, indices, reverse=True)[0]

    begin, end = forward(inputs)
    return begin, end, backward(inputs, end)


def assert_restored(begin, end, restored):
    for name in ("position", "velocity", "lanes"):
        for a, b in zip(jax.tree.leaves(getattr(begin, name)), jax.tree.leaves(getattr(restored, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not bool(end.out_of_bits | end.out_of_range)
    moved = zip(jax.tree.leaves(begin.position), jax.tree.leaves(end.position), strict=True)
    assert all(bool(jnp.any(a != b)) for a, b in moved)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_loop_is_restored_bit_for_bit(decay):
    """Catches any step whose undoing is off by a single bit: T19."""
    begin, end, restored = there_and_back(WEIGHTS, ARGS, mk.inner.Momentum(0.01, decay), 200)
    assert_restored(begin, end, restored)


@pytest.mark.slow
@pytest.mark.optimised
def test_an_optimised_program_is_restored_as_well():
    """Catches a gradient that is fused with what follows it: forward and backward then round in different places, and
    the optimised program gives NaN where the unoptimised one of `test_the_loop_is_restored_bit_for_bit` is right."""
    objective, params, data = mlp_problem(10, 8)
    solver = mk.inner.PerLayerPerStepMomentum.like(params, 0.05, 0.9, num_steps=20)
    assert_restored(*there_and_back(params, data, solver, 20, objective))


def towards(w, target, step):
    """So slow at a rate of 1e-3 that 200 steps do not reach the minimum, where a float loop would stand still."""
    del step
    return 0.5 * jnp.sum(jnp.arange(1.0, 4.0) * (w["w"] - target) ** 2)


def test_floating_point_would_not_be_restored():
    """The negative control: the same reversal in float64 is off by many orders of magnitude, 0.5**-200 of a rounding,
    where integers are exact."""
    rate, decay, start, target = 1e-3, 0.5, {"w": jnp.asarray([1.0, -2.0, 0.3])}, jnp.asarray([0.7, 0.1, -0.4])
    solver = mk.inner.Momentum(rate, decay)
    assert_restored(*there_and_back(start, target, solver, 200, towards))
    solution = mk.inner.Unrolled().solve(towards, solver, start, target, 200)

    def back(carry, index):
        params, velocity = carry
        params = jax.tree.map(lambda p, v: p + rate * v, params, velocity)
        gradient = jax.grad(towards)(params, target, index)
        return (params, jax.tree.map(lambda v, g: (v - g) / decay, velocity, gradient)), None

    (params, _), _ = jax.lax.scan(back, (solution.params, solution.state), jnp.arange(200), reverse=True)
    assert float(jnp.max(jnp.abs(params["w"] - start["w"]))) > 1e6


def outcome(inputs, adjoint, num_steps):
    """A scalar of everything a solution holds, so that every cotangent is at work."""
    params, args, solver = inputs
    watch = lambda params, args, step: {"cube": jnp.sum(params["w1"] ** 3) * args["decay"], "step": step}
    solution = adjoint.solve(OBJECTIVE, solver, params, args, num_steps, observe=watch)
    total = jnp.sum(jnp.sin(solution.params["w1"])) + jnp.sum(jnp.cos(solution.params["w2"]))
    weights = jnp.arange(1.0, num_steps + 1)
    return total + jnp.sum(solution.losses * weights) / 10 + jnp.sum(solution.observed["cube"] * weights)


SOLVERS = {
    "momentum": mk.inner.Momentum(0.01, 0.9),
    "per_step": mk.inner.PerLayerPerStepMomentum.like(PARAMS, 0.01, 0.8, num_steps=50),
    "averaged": mk.inner.PerLayerPerStepMomentum.like(PARAMS, 0.05, 0.8, num_steps=50, averaged=True),
}


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("name", "num_steps"), [("momentum", 3), *((name, 50) for name in SOLVERS)])
def test_gradient_is_the_unroll_s_and_that_of_differences(name, num_steps):
    """Catches a dropped term of any input, decays and rates among them, and a decay that is not the one of the path:
    T19b. The reference runs with the decays that Reversible rounds to."""
    solver = mk.inner.Reversible().effective(SOLVERS[name], PARAMS)
    gradients = [
        eqx.filter_jit(eqx.filter_grad(outcome))((PARAMS, ARGS, s), adjoint, num_steps)
        for s, adjoint in ((SOLVERS[name], mk.inner.Reversible()), (solver, mk.inner.Unrolled()))
    ]
    for actual, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        error = jnp.linalg.norm(jnp.ravel(actual - expected)) / (jnp.linalg.norm(jnp.ravel(expected)) + 1e-12)
        assert float(error) < 1e-10
    assert_gradient_matches_differences(
        lambda tree: outcome(tree, mk.inner.Unrolled(), num_steps), (PARAMS, ARGS, solver), gradients[0]
    )


def test_the_published_case():
    """Catches a reversal that holds for one kind of velocity only: the released code's own test, a quadratic of 12
    examples in minibatches of 4 over 3 epochs, rates and decays drawn at random for every step, averaged velocity."""
    keys = jax.random.split(jax.random.key(0), 6)
    x, y = jax.random.normal(keys[0], (12, 5)), jax.random.normal(keys[1], (12,))
    rates = 0.1 * jax.random.uniform(keys[2], (9,))
    decays = 0.5 + 0.2 * jax.random.uniform(keys[3], (9,))

    def loss(w, args, step):
        batch = jax.lax.dynamic_slice_in_dim(args["x"], 4 * (step % 3), 4)
        targets = jax.lax.dynamic_slice_in_dim(args["y"], 4 * (step % 3), 4)
        return jnp.sum((batch @ w["w"] - targets) ** 2) + args["penalty"] * jnp.sum(w["w"] ** 2)

    def outer(inputs, adjoint):
        w, args, solver = inputs
        w = adjoint.solve(loss, solver, w, args, 9).params["w"]
        return jnp.sum((x[::-1] @ w - y) ** 2)

    solver = mk.inner.PerLayerPerStepMomentum({"w": rates}, {"w": decays}, averaged=True)
    inputs = ({"w": jax.random.normal(keys[4], (5,))}, {"x": x, "y": y, "penalty": jnp.asarray(0.3)}, solver)
    gradient = eqx.filter_grad(outer)(inputs, mk.inner.Reversible(smallest_decay=0.4))
    effective = mk.inner.Reversible().effective(solver, inputs[0])
    assert_gradient_matches_differences(lambda t: outer(t, mk.inner.Unrolled()), (*inputs[:2], effective), gradient)


def test_float32_parameters_stay_so_and_are_restored():
    """Catches a loop that promotes float32 parameters, and one that restores only what float64 gradients moved."""
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, (WEIGHTS, ARGS))
    assert_restored(*there_and_back(*small, mk.inner.Momentum(0.01, 0.9), 50))

    def total(params):
        return jnp.sum(mk.inner.Reversible().solve(OBJECTIVE, SOLVERS["momentum"], params, small[1], 20).params["w1"])

    gradient = jax.grad(total)(small[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.optimised
def test_vmap_over_problems_is_a_loop():
    """Catches integers, lanes or flags that do not batch."""
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), {k: ARGS[k] for k in ("x", "y")})

    def gradient(data):
        def loss(params):
            adjoint = mk.inner.Reversible()
            return jnp.sum(adjoint.solve(OBJECTIVE, SOLVERS["momentum"], params, {**ARGS, **data}, 3).params["w2"] ** 2)

        return eqx.filter_grad(loss)(PARAMS)["w1"]

    together = jax.jit(jax.vmap(gradient))(batch)
    for i in range(2):
        np.testing.assert_allclose(together[i], gradient({k: leaf[i] for k, leaf in batch.items()}), rtol=1e-9)


def mlp_problem(width, examples, seed=0, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), 3)
    model = mk.nn.MLP(20, 1, width, 2, jnp.tanh, key=keys[0])
    arrays, static = eqx.partition(model, eqx.is_array)
    x = jax.random.normal(keys[1], (examples, 20), dtype)
    data = {"x": x, "y": jnp.sin(x[:, :1]), "decay": jnp.asarray(1e-3, dtype)}

    def objective(params, args, step):
        del step
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean((eqx.combine(params, static)(args["x"]) - args["y"]) ** 2) + args["decay"] * squares

    return objective, jax.tree.map(lambda leaf: leaf.astype(dtype), arrays), data


@pytest.mark.slow
@pytest.mark.optimised
def test_a_thousand_steps_of_ten_thousand_parameters():
    """Catches the rounding errors that grow over a long loop: restoration to the last bit, and the hypergradient of
    parameters, data, weight decay, rates and decays within 1e-8 of the stored loop's."""
    objective, params, data = mlp_problem(90, 32)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 10_000
    solver = mk.inner.PerLayerPerStepMomentum.like(params, 0.05, 0.9, num_steps=1000)
    assert_restored(*there_and_back(params, data, solver, 1000, objective))

    def outer(inputs, adjoint):
        params, data, solver = inputs
        adapted = adjoint.solve(objective, solver, params, data, 1000).params
        return objective(adapted, {**data, "x": data["x"][::-1] + 0.1}, None)

    adjoint = mk.inner.Reversible(smallest_decay=0.85)
    gradient = eqx.filter_jit(eqx.filter_grad(outer))
    actual = gradient((params, data, solver), adjoint)
    expected = gradient((params, data, adjoint.effective(solver, params)), mk.inner.Checkpointed())
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b))) < 1e-8


@pytest.mark.slow
@pytest.mark.optimised
def test_memory_of_a_thousand_steps():
    """Catches a stored trajectory, by the compiler's own analysis: below 5 % of the plain unroll's."""
    objective, params, data = mlp_problem(90, 64)

    def outer(params, data, adjoint):
        return objective(adjoint.solve(objective, mk.inner.Momentum(0.05, 0.9), params, data, 1000).params, data, None)

    def temporary(adjoint):
        program = jax.jit(jax.grad(outer), static_argnums=2).lower(params, data, adjoint).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(mk.inner.Reversible(0.89)) < 0.05 * temporary(mk.inner.Unrolled())


def solved(w, solver=None, num_steps=5, adjoint=None, objective=None):
    objective = objective or (lambda w, args, step: 0.5 * jnp.sum(w**2))
    adjoint = adjoint or mk.inner.Reversible()
    return adjoint.solve(objective, solver or mk.inner.Momentum(0.1, 0.9), w, None, num_steps).params


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: solved(jnp.ones(2), mk.inner.SGD(0.1)),
            r"cannot undo the steps of SGD.*Momentum.*PerLayerPerStepMome",
        ),
        (lambda: solved(jnp.ones(2), mk.inner.Optax(optax.adam, learning_rate=0.1)), r"cannot undo the steps of Optax"),
        (
            lambda: solved(jnp.ones(2), mk.inner.Momentum(0.1, 0.9, nesterov=True)),
            r"nesterov=True\) cannot be reversed",
        ),
        (lambda: solved(jnp.ones(2), mk.inner.Momentum(0.1, 0.0)), r"between 0 and 1 .*got 0\. .*forgets the velocity"),
        (
            lambda: jax.grad(lambda m: jnp.sum(solved(jnp.ones(2), mk.inner.Momentum(0.1, m))))(1.0),
            r"momentum.*between 0 and 1 .*got 1\. ",
        ),
        (
            lambda: jax.grad(lambda m: jnp.sum(solved(jnp.ones(2), mk.inner.Momentum(0.1, m))))(1.25),
            r"momentum.*between 0 and 1 .*got 1\.25\. ",
        ),
        (
            lambda: eqx.filter_grad(lambda solver: jnp.sum(solved(jnp.ones(2), solver, 3)))(
                mk.inner.PerLayerPerStepMomentum(jnp.full(3, 0.1), jnp.asarray([0.9, -0.375, 0.9]))
            ),
            r"between 0 and 1 .*got -0\.375\. ",
        ),
        (lambda: solved(jnp.ones(2), mk.inner.Momentum(0.1, 1.0)), r"strictly between 0 and 1 .*got 1\. "),
        (lambda: mk.inner.Reversible(smallest_decay=1.0), r"smallest_decay must lie strictly between 0 and 1, got 1"),
        (lambda: solved(jnp.full(2, 2000.0)), r"hold values within ±1024.*diverge"),
        (lambda: solved(jnp.ones(2), mk.inner.Momentum(30.0, 0.9), 20), r"hold values within ±1024.*diverge"),
        (
            lambda: solved(jnp.asarray([0.3, 0.7]), mk.inner.Momentum(0.1, 0.1), 60),
            r"ran out of room .* smallest_decay=0\.5",
        ),
    ],
)
def test_what_cannot_be_reversed_is_refused(make, message):
    """Catches a wrong gradient in silence: of a solver with no inverse, of decays outside (0, 1), of numbers that have
    left the fixed point's range or their bits' room."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [(mk.inner.Momentum(0.1, 0.1), 60), (mk.inner.Momentum(30.0, 0.9), 20), (mk.inner.Momentum(0.1, 1.0), 5)],
    ids=["bits", "range", "decay"],
)
def test_a_compiled_program_gives_nan_instead(solver, num_steps):
    """Catches a compiled gradient that is wrong and looks right, since compiled code cannot raise."""

    @eqx.filter_jit
    def run(solver, w):
        return jax.value_and_grad(lambda w: jnp.sum(solved(w, solver, num_steps)))(w)

    value, gradient = run(solver, jnp.asarray([0.3, 0.7]))
    assert bool(jnp.isnan(value))
    assert bool(jnp.all(jnp.isnan(gradient)))


def test_without_64_bit_integers_it_says_so():
    """Catches int64 that silently becomes int32."""
    with jax.enable_x64(False), pytest.raises(ValueError, match=r'jax_enable_x64", True'):
        solved(jnp.ones(2))


@pytest.mark.parametrize("twice", [lambda f: jax.grad(lambda w: jnp.sum(jax.grad(f)(w) ** 2)), jax.hessian])
def test_second_derivatives_are_refused(twice):
    """Catches a Hessian that misses the way through the integers."""
    with pytest.raises((ValueError, TypeError), match=r"first derivatives only|forward-mode"):
        twice(lambda w: jnp.sum(solved(w, objective=lambda w, args, step: jnp.sum(w**4)) ** 3))(jnp.ones(2))


def test_a_step_that_is_undone_wrongly_is_noticed(monkeypatch):
    """Catches a backward pass that trusts its restoration: one bit of one velocity is lost on the way."""
    exact = _undo.unmultiply
    monkeypatch.setattr(_undo, "unmultiply", lambda number, lane, n: exact(number + 1, lane, n))
    with pytest.raises(ValueError, match="did not arrive where the loop began"):
        jax.grad(lambda w: jnp.sum(solved(w)))(jnp.ones(2))
    compiled = jax.jit(jax.grad(lambda w: jnp.sum(solved(w))))(jnp.ones(2))
    assert bool(jnp.all(jnp.isnan(compiled)))
