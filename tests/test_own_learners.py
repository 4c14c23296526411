"""Three published learners written with `mk.inner.descend`, as a user would write them: each is short, and right."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import metakit as mk


# CAVIA, Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642: context parameters alone adapt, and start at 0.
class CAVIA(eqx.Module):
    network: mk.nn.MLP  # of the input and the context
    context: mk.Hyperparameter  # mk.fixed(zeros): adapts, and is not learned
    solver: mk.inner.AbstractSolver


class InContext(eqx.Module):
    network: mk.nn.MLP
    context: mk.Hyperparameter

    def __call__(self, x):
        context = jnp.broadcast_to(self.context.value, (len(x), *self.context.value.shape))
        return self.network(jnp.concatenate([x, context], axis=1))


def regression_loss(model, examples, step):
    return mk.losses.squared_error(model(examples.x), examples.y, reduction="mean")


def adapt_cavia(learner, support, key=None):
    model = InContext(learner.network, learner.context)
    only_context = mk.inner.select.only(lambda model: model.context)
    return mk.inner.descend(regression_loss, model, support, solver=learner.solver, num_steps=2, select=only_context)[0]


# Proto-MAML, Triantafillou et al. 2020, https://arxiv.org/abs/1903.03096: MAML whose head starts at the prototypes.
class ProtoMAML(eqx.Module):
    embed: mk.nn.MLP
    solver: mk.inner.AbstractSolver


class Headed(eqx.Module):
    embed: mk.nn.MLP
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.embed(x) @ self.weight + self.bias[None]


def classification_loss(model, examples, step):
    return mk.losses.cross_entropy(model(examples.x), examples.y, reduction="mean")


def adapt_proto_maml(learner, support, key=None):
    members = jax.nn.one_hot(support.y, support.way, dtype=support.x.dtype)
    prototypes = (members / members.sum(0)[None]).T @ learner.embed(support.x)
    model = Headed(learner.embed, 2 * prototypes.T, -jnp.sum(prototypes**2, axis=1))
    return mk.inner.descend(classification_loss, model, support, solver=learner.solver, num_steps=2)[0]


# A support vector machine on features, as in MetaOptNet, Lee et al. 2019, https://arxiv.org/abs/1904.03758, here with
# squared hinges of one class against the others, differentiated as a minimum.
class SVM(eqx.Module):
    embed: mk.nn.MLP
    penalty: mk.Hyperparameter
    solver: mk.inner.AbstractSolver


class Machine(eqx.Module):
    embed: mk.nn.MLP
    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(self.embed(x)) @ self.weight


def svm_loss(weight, data, step):
    features, signs, penalty = data
    margins = jax.nn.relu(1 - signs * (features @ weight))
    return jnp.mean(jnp.sum(margins**2, axis=1)) + penalty * jnp.sum(weight**2)


def adapt_svm(learner, support, key=None):
    features = jnp.tanh(learner.embed(support.x))
    signs = 2 * jax.nn.one_hot(support.y, support.way, dtype=features.dtype) - 1
    weight, _ = mk.inner.descend(
        svm_loss,
        jnp.zeros((features.shape[1], support.way)),
        (features, signs, learner.penalty.value),
        solver=learner.solver,
        num_steps=300,
        adjoint=mk.inner.Implicit(tolerance=1e-6),
    )
    return Machine(learner.embed, weight)


def predict(adapted, x, key=None):
    return adapted(x)


def algorithm(adapt, loss):
    def meta_loss(learner, task, key=None):
        return loss(adapt(learner, task.support), task.query, 0)

    return mk.MetaLearner(adapt, predict, meta_loss)


def blobs(key):
    """Three classes around centres of their own."""
    centre_key, noise_key = jax.random.split(key)
    centres = jax.random.normal(centre_key, (3, 2))
    labels = jnp.tile(jnp.arange(3), 6)
    x = centres[labels] + 0.3 * jax.random.normal(noise_key, (18, 2))
    return mk.Episode(*(mk.Examples(x[part], labels[part], way=3) for part in (slice(6), slice(6, 18))))


CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "cavia": (
        algorithm(adapt_cavia, regression_loss),
        CAVIA(mk.nn.MLP(1 + 2, 1, 8, 1, jnp.tanh, key=jax.random.key(0)), mk.fixed(jnp.zeros(2)), mk.inner.SGD(0.3)),
        mk.tasks.Sinusoid(),
        lambda learner: learner.network,
    ),
    "proto_maml": (
        algorithm(adapt_proto_maml, classification_loss),
        ProtoMAML(mk.nn.MLP(2, 3, 6, 1, jnp.tanh, key=jax.random.key(0)), mk.inner.SGD(0.1)),
        blobs,
        lambda learner: learner.embed,
    ),
    "svm": (
        algorithm(adapt_svm, classification_loss),
        SVM(mk.nn.MLP(2, 3, 6, 1, jnp.tanh, key=jax.random.key(0)), mk.learned(0.8), mk.inner.SGD(0.2)),
        blobs,
        lambda learner: (learner.embed, learner.penalty),
    ),
}
each = pytest.mark.parametrize("name", CASES)


@each
def test_its_meta_gradient_is_that_of_central_differences(name):
    """Catches a learner that trains on a gradient of something else; and Implicit refusing a learner's fixed rate."""
    own, learner, sampler, where = CASES[name]
    task = sampler(jax.random.key(3))
    gradient = eqx.filter_grad(own.meta_loss)(learner, task)
    flat, unravel = ravel_pytree(eqx.filter(where(learner), eqx.is_inexact_array))

    @jax.jit
    def value(numbers):
        return own.meta_loss(eqx.tree_at(where, learner, eqx.combine(unravel(numbers), where(learner))), task)

    steps = np.eye(flat.size) * 1e-5
    expected = np.array([(value(flat + step) - value(flat - step)) / 2e-5 for step in steps])
    # The SVM's second derivative jumps at a hinge, and its minimum is good to 1e-6.
    tolerance = 1e-4 if name == "svm" else 1e-6
    np.testing.assert_allclose(ravel_pytree(where(gradient))[0], expected, rtol=tolerance, atol=tolerance)


@each
def test_it_trains_and_its_fixed_numbers_stay(name):
    """Catches a learner that only the library's own training step can take, or whose start and rate drift."""
    own, learner, sampler, _ = CASES[name]
    tasks = eqx.filter_vmap(sampler)(jax.random.split(jax.random.key(9), 64))
    before = mk.sharding.meta_gradient(own, learner, tasks).loss
    optimiser = mk.train.adam(1e-2)
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(own, optimiser, state, sampler, num_steps=60, meta_batch=8)
    assert mk.sharding.meta_gradient(own, state.learner, tasks).loss < before
    fixed = lambda tree: [
        node.value
        for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, mk.Hyperparameter))
        if isinstance(node, mk.Hyperparameter) and not node.learned
    ]
    assert fixed(learner)
    assert eqx.tree_equal(fixed(state.learner), fixed(learner))


@pytest.mark.parametrize("adapt", [adapt_cavia, adapt_proto_maml, adapt_svm])
def test_its_adaptation_is_short(adapt):
    """Catches an inner loop that needs partition, arguments and held numbers by hand again: 17 lines each, once."""
    assert len(inspect.getsource(adapt).splitlines()) <= 14
