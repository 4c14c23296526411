"""Functions in a learner: nodes without leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk
from metakit._static import Static, as_node
from metakit.train._static import static_parts

KEY = jax.random.key(0)


def absolute_error(outputs, targets, *, reduction):
    assert reduction == "mean"
    return jnp.mean(jnp.abs(outputs - targets))


class ScaledError(eqx.Module):
    scale: mk.Hyperparameter

    def __call__(self, outputs, targets, *, reduction):
        return self.scale.value * mk.losses.squared_error(outputs, targets, reduction=reduction)


def learner(loss=mk.losses.squared_error, key=KEY):
    model = mk.nn.MLP(1, 1, 4, 1, jnp.tanh, key=key)
    return mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=1, loss=loss)


def test_a_function_is_called_compared_and_hashed_as_itself():
    """Catches a wrapper for which `learner.loss == mk.losses.squared_error` is false, or two learners differ."""
    node = as_node(absolute_error)
    assert jax.tree.leaves(node) == []
    assert node == absolute_error == as_node(absolute_error)
    assert node != mk.losses.squared_error
    assert hash(node) == hash(absolute_error)
    assert float(node(jnp.ones(2), jnp.zeros(2), reduction="mean")) == 1
    assert "absolute_error" in repr(node)


@pytest.mark.parametrize("value", [None, 3.0, ScaledError(mk.learned(1.0)), as_node(absolute_error)])
def test_only_a_plain_function_is_wrapped(value):
    """Catches a module whose parameters the wrapper hides, and a node inside a node after `dataclasses.replace`."""
    assert as_node(value) is value


def test_a_loss_with_parameters_keeps_its_leaves():
    """Catches a loss that is a module and gets no gradient."""
    one = mk.maml.MAML(
        mk.nn.MLP(1, 1, 4, 1, key=KEY),
        inner=mk.inner.SGD(0.01),
        num_steps=1,
        loss=ScaledError(mk.learned(2.0)),
        query_loss=mk.losses.squared_error,
    )
    gradient = jax.grad(mk.maml.meta_loss)(one, mk.tasks.Sinusoid()(KEY))
    assert float(gradient.loss.scale.value) != 0


def test_the_same_function_compiles_once_and_another_again():
    """Catches equality by the wrapper, under which every new learner compiles, or none at all, under which the loss of
    the first is everyone's."""
    traces = 0

    @jax.jit
    def loss(learner, task):
        nonlocal traces
        traces += 1
        return mk.maml.meta_loss(learner, task)

    task = mk.tasks.Sinusoid()(KEY)
    first, second = loss(learner(), task), loss(learner(key=jax.random.key(1)), task)
    assert traces == 1
    assert first != second
    assert loss(learner(absolute_error), task) != first
    assert traces == 2


def test_a_checkpoint_names_the_function_as_if_it_were_a_plain_field():
    """Catches records written while functions were leaves that fit no longer, or a loss that may change unseen."""
    one = learner()
    parts = static_parts(one)
    assert parts[".loss"] == "metakit.losses.squared_error"
    assert not [path for path in parts if path.startswith(".loss.")]
    assert static_parts(Static(jnp.tanh)) == static_parts(jnp.tanh)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(one)]
    layers = [f".model.{layer}.{name}" for layer in ("hidden[0]", "head") for name in ("weight", "bias")]
    assert paths == [*layers, ".inner.rate.value"]


@pytest.mark.parametrize("embed", [lambda x: x, jnp.tanh, jax.jit(lambda x: 2 * x)], ids=["lambda", "ufunc", "jitted"])
def test_a_plain_function_is_an_embedding(embed):
    """Catches an `embed` without parameters that a learner holds as a leaf."""
    one = mk.prototypical.Prototypical(embed, scale=mk.learned(1.0))
    x = jax.random.normal(KEY, (4, 3))
    examples = mk.Examples(x, jnp.array([0, 1, 0, 1]), way=2)
    gradient = jax.jit(jax.grad(mk.prototypical.meta_loss))(one, mk.Episode(examples, examples))
    assert np.isfinite(gradient.scale.value)
    assert gradient.embed == embed


def test_a_norm_without_parameters():
    """Catches a norm that is a plain function and a leaf of the network."""
    network = mk.nn.MLP(2, 1, 4, 1, norm=lambda width: lambda x: x / width, key=KEY)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(network))


def test_a_bilevel_problem_is_an_argument_of_a_compiled_function():
    """Catches the functions of a problem as leaves: bare `jax.jit` could not take it."""
    problem = mk.Bilevel(
        inner=lambda w, decay, data, step: jnp.sum((w - data) ** 2) + decay * jnp.sum(w**2),
        outer=lambda w, decay, data: jnp.sum((w - data) ** 2),
        solver=lambda decay: mk.inner.SGD(0.1),
        num_steps=3,
    )
    decay, start, data = jnp.asarray(0.1), jnp.zeros(2), jnp.ones(2)
    compiled = jax.jit(lambda problem: mk.hypergradient(problem, decay, start, data).gradient)(problem)
    np.testing.assert_allclose(compiled, mk.hypergradient(problem, decay, start, data).gradient, rtol=1e-12)
