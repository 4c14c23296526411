"""The inner loop of a model in one call: what moves, what gets a gradient, what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import metakit as mk
from metakit.inner import select


class Learner(eqx.Module):
    """Every kind of number that an inner loop depends on."""

    model: mk.nn.MLP
    solver: mk.inner.SGD
    loss: eqx.Module
    penalty: mk.Hyperparameter


class Weighed(eqx.Module):
    """A loss with a number of its own: squared errors to a learned power, and a penalty that is data."""

    weight: jax.Array

    def __call__(self, model, data, step):
        support, penalty = data
        error = mk.losses.squared_error(model(support.x), support.y, reduction="mean")
        return self.weight**2 * error + penalty * jnp.sum(model.head.weight**2)


def make_learner():
    model = mk.nn.MLP(1, 1, 4, 1, jnp.tanh, key=jax.random.key(0))
    return Learner(model, mk.inner.SGD(mk.learned(0.05)), Weighed(jnp.asarray(0.7)), mk.learned(0.1))


EPISODE = mk.tasks.Sinusoid()(jax.random.key(1))


def meta_loss(learner, task, adjoint="auto", select=select.head_only, num_steps=3):
    model, _ = mk.inner.descend(
        learner.loss,
        learner.model,
        (task.support, learner.penalty.value),
        solver=learner.solver,
        num_steps=num_steps,
        select=select,
        adjoint=adjoint,
    )
    return mk.losses.squared_error(model(task.query.x), task.query.y, reduction="mean")


def central_differences(function, tree, size=1e-5):
    flat, unravel = ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))
    rest = eqx.filter(tree, eqx.is_inexact_array, inverse=True)
    value = eqx.filter_jit(lambda numbers: function(eqx.combine(unravel(numbers), rest)))
    rows = np.eye(flat.size) * size
    return np.array([(value(flat + row) - value(flat - row)) / (2 * size) for row in rows])


@pytest.mark.parametrize(
    "adjoint",
    ["auto", mk.inner.Unrolled(), mk.inner.MixedMode(), mk.inner.Checkpointed(), mk.inner.Forward()],
    ids=lambda how: how if isinstance(how, str) else type(how).__name__,
)
def test_gradients_are_central_differences(adjoint):
    """Catches any of start, frozen parts, data, rate and the loss's own weights being closed over, which drops it."""
    learner = make_learner()
    gradient = eqx.filter_grad(meta_loss)(learner, EPISODE, adjoint)
    found = np.asarray(ravel_pytree(gradient)[0])
    # Central differences of 1e-5 in float64 are right to about 1e-10 of the third derivative, and rounding 1e-11.
    expected = central_differences(lambda learner: meta_loss(learner, EPISODE, adjoint), learner)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    for name in ("model", "solver", "loss", "penalty"):
        assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(getattr(gradient, name))), name


def test_it_is_the_loop_written_by_hand():
    """Catches arithmetic of its own: partition, objective and arguments by hand give the same bits."""
    learner = make_learner()
    data = (EPISODE.support, learner.penalty.value)
    model, solution = mk.inner.descend(
        learner.loss, learner.model, data, solver=learner.solver, num_steps=4, select=select.body_only
    )

    params, frozen = select.partition(learner.model, select.body_only)
    by_hand = mk.inner.Unrolled().solve(
        lambda params, args, step: args[0](eqx.combine(params, args[1]), args[2], step),
        learner.solver,
        params,
        (learner.loss, frozen, data),
        4,
    )
    assert eqx.tree_equal(model, eqx.combine(by_hand.params, frozen))
    assert eqx.tree_equal(solution.losses, by_hand.losses)
    assert eqx.tree_equal(model.head, learner.model.head)  # which was not to move


def test_each_step_draws_with_a_key_of_its_own():
    """Catches one key for all steps, and keys that depend on how the loop is differentiated."""

    def loss(w, data, step, key):
        del data, step
        return w * jax.random.normal(key, (), w.dtype)  # its slope is what was drawn

    def run(adjoint, key):
        return mk.inner.descend(
            loss, jnp.zeros(()), None, solver=mk.inner.SGD(1.0), num_steps=6, adjoint=adjoint, key=key
        )[0]

    key = jax.random.key(5)
    drawn = [jax.random.normal(jax.random.fold_in(key, step), ()) for step in range(6)]
    assert len({float(number) for number in drawn}) == 6
    for adjoint in ("auto", mk.inner.Unrolled(), mk.inner.MixedMode(), mk.inner.Checkpointed()):
        np.testing.assert_allclose(run(adjoint, key), -sum(drawn), rtol=1e-12)


def test_observe_sees_the_whole_model_after_each_step():
    """Catches an observer of the parameters alone, or of the model before the step."""
    learner = make_learner()
    model, solution = mk.inner.descend(
        learner.loss,
        learner.model,
        (EPISODE.support, learner.penalty.value),
        solver=learner.solver,
        num_steps=3,
        select=select.head_only,
        observe=lambda model, data, step: (model.head.weight, model.hidden[0].weight, step),
    )
    heads, bodies, steps = solution.observed
    assert steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(heads[-1], model.head.weight)
    np.testing.assert_array_equal(bodies, jnp.broadcast_to(learner.model.hidden[0].weight, bodies.shape))


class Pull(eqx.Module):
    """A learner of `Implicit`: the minimum of a square, from a start of its own, at some rate."""

    start: jax.Array
    target: jax.Array
    solver: mk.inner.SGD


def pull_loss(learner, task, key=None, hold=mk.held):
    def loss(w, target, step):
        return 0.5 * jnp.sum((w - target) ** 2)

    w, _ = mk.inner.descend(
        loss,
        hold(learner.start),
        learner.target * task,
        solver=learner.solver,
        num_steps=60,
        adjoint=mk.inner.Implicit(),
    )
    return jnp.sum(w)


def test_implicit_takes_a_fixed_rate_wherever_a_gradient_is_taken():
    """Catches a learner that mk.train takes and eqx.filter_grad or meta_gradient refuses: its rate does not move."""
    learner = Pull(jnp.zeros(2), jnp.ones(2), mk.inner.SGD(0.5))
    algorithm = mk.MetaLearner(None, None, pull_loss)
    alone = eqx.filter_grad(pull_loss)(learner, jnp.asarray(3.0))
    many = mk.sharding.meta_gradient(algorithm, learner, jnp.asarray([2.0, 4.0])).gradient
    for gradient in (alone, many):
        np.testing.assert_allclose(gradient.target, [3.0, 3.0], rtol=1e-10)
        assert not np.any(gradient.start)
        assert not np.any(gradient.solver.rate.value)


def test_implicit_still_refuses_what_it_would_leave_where_it_is():
    """Catches holding that goes too far: a learned rate, or a learned start, which would never move."""
    learned = Pull(jnp.zeros(2), jnp.ones(2), mk.inner.SGD(mk.learned(0.5)))
    with pytest.raises(ValueError, match="no gradient with respect to solver"):
        eqx.filter_grad(pull_loss)(learned, jnp.asarray(3.0))
    fixed = Pull(jnp.zeros(2), jnp.ones(2), mk.inner.SGD(0.5))
    with pytest.raises(ValueError, match="no gradient with respect to params"):
        eqx.filter_grad(lambda learner, task: pull_loss(learner, task, hold=lambda tree: tree))(fixed, jnp.asarray(3.0))


def test_held_numbers_take_part_and_get_no_gradient():
    """Catches numbers that held would round, drop or differentiate."""
    tree = {"w": jnp.asarray(2.0), "n": jnp.arange(2), "name": "a"}
    assert eqx.tree_equal(mk.held(tree), tree)
    gradient = jax.grad(lambda w: w**2 * mk.held({"w": w})["w"])(jnp.asarray(3.0))
    assert gradient == 2 * 3.0 * 3.0


def test_the_problem_is_the_one_that_descend_solves():
    """Catches an adjoint chosen for another loop than runs: the frozen body in place of the adapting head."""
    learner = make_learner()
    objective, params, args = mk.inner.problem(
        learner.loss, learner.model, (EPISODE.support, learner.penalty.value), select=select.head_only
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5
    choice = mk.inner.choose_adjoint(objective, learner.solver, params, args, 50)
    assert choice.reason.startswith("50 steps of SGD on 5 parameters")
    at_start = learner.loss(learner.model, (EPISODE.support, learner.penalty.value), 0)
    np.testing.assert_allclose(objective(params, args, jnp.asarray(0)), at_start, rtol=1e-12)


def simple(w, data, step):
    return jnp.sum((w - data) ** 2)


def drawing(w, data, step, key):
    return jnp.sum((w - data) ** 2) * jax.random.normal(key, (), w.dtype)


def descend(loss=simple, model=None, **options):
    options = {"solver": mk.inner.SGD(0.1), "num_steps": 2} | options
    return mk.inner.descend(loss, jnp.ones(2) if model is None else model, jnp.zeros(2), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: descend("mse"), TypeError, "loss must be a function loss.model, data, step., got 'mse'"),
        (lambda: descend(drawing), ValueError, r"takes \(w, data, step, key\).*descend\(\.\.\., key=key\)"),
        (lambda: descend(key=jax.random.key(0)), ValueError, r"called loss\(model, data, step, key\), since a key"),
        (lambda: descend(solver=mk.inner.SGD), TypeError, r"solver must be .*the class SGD. Call it first: SGD\("),
        (lambda: descend(adjoint="unrolled"), TypeError, r"adjoint must be .* or \"auto\"; got 'unrolled'"),
        (lambda: descend(num_steps=-1), ValueError, "num_steps must be at least 0"),
        (lambda: descend(select=lambda w: False), ValueError, "selects no floating-point array"),
        (lambda: descend(model=jnp.arange(2)), ValueError, "selects no floating-point array"),
        (
            lambda: descend(Weighed(jnp.ones(())), adjoint=mk.inner.FirstOrder()),
            ValueError,
            "weights of its own, but FirstOrder gives no gradient",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    """Catches an error of JAX's insides in place of a sentence about the argument."""
    with pytest.raises(error, match=message):
        call()
