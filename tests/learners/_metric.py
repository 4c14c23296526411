"""What the tests of the metric learners share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metakit as mk


def flat(x):
    """The identity as an embedding network."""
    return x.reshape(x.shape[0], -1)


class Affine(eqx.Module):
    """A small embedding network with a batch norm or without."""

    weight: jax.Array
    norm: eqx.Module | None

    def __init__(self, in_size, out_size, key, norm=False):
        self.weight = jax.random.normal(key, (in_size, out_size), dtype=jnp.float64)
        self.norm = mk.nn.BatchStatNorm(out_size) if norm else None

    def __call__(self, x):
        y = x @ self.weight
        return jnp.tanh(y if self.norm is None else self.norm(y))


def random_examples(key, labels, way, d=4):
    """Standard normal inputs with the given labels."""
    return mk.Examples(jax.random.normal(key, (len(labels), d)), jnp.asarray(labels), way=way)


def random_episode(key, way=3, shot=2, queries=2, d=4):
    k1, k2 = jax.random.split(key)
    return mk.Episode(
        random_examples(k1, [i % way for i in range(way * shot)], way, d),
        random_examples(k2, [i % way for i in range(way * queries)], way, d),
    )


def clusters(key, way, shot, queries, d=8):
    """Noiseless clusters: every example of a class is the same point."""
    centres = 3 * jax.random.normal(key, (way, d))
    support, query = jnp.tile(jnp.arange(way), shot), jnp.tile(jnp.arange(way), queries)
    return mk.Episode(mk.Examples(centres[support], support, way=way), mk.Examples(centres[query], query, way=way))


def assert_gradient_is_central_difference(loss, tree, step=1e-5, rtol=1e-6):
    """The directional derivatives of `loss` along random directions, in float64."""
    loss = eqx.filter_jit(loss)
    gradient = eqx.filter_grad(loss)(tree)
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    gradients = jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array))
    assert len(gradients) == len(leaves)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        direction = [jax.random.normal(k, leaf.shape, dtype=leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]

        def value(t, direction=direction):
            moved = [leaf + t * d for leaf, d in zip(leaves, direction, strict=True)]
            return float(loss(eqx.combine(jax.tree.unflatten(structure, moved), rest)))

        numerical = (value(step) - value(-step)) / (2 * step)
        analytic = sum(float(jnp.sum(g * d)) for g, d in zip(gradients, direction, strict=True))
        np.testing.assert_allclose(analytic, numerical, rtol=rtol, atol=1e-9)


def assert_training_helps(algorithm, learner, *, num_steps=60, meta_batch=4, rate=3e-3):
    """5-way 1-shot accuracy on characters of scripts that training never saw: disjoint 95 % intervals."""

    def glyphs(part):
        return mk.tasks.Episodes(mk.tasks.glyphs(part), way=5, shot=1, queries=3)

    def accuracy(learner):
        scores = mk.evaluate.scores(
            algorithm,
            learner,
            glyphs("test"),
            jax.random.key(1),
            num_tasks=100,
            metrics={"accuracy": mk.metrics.accuracy},
        )
        return mk.evaluate.student_t(scores["accuracy"])

    with jax.enable_x64(False):
        learner = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, learner)
        optimiser = optax.adam(rate)
        state = mk.train.init(learner, optimiser, key=jax.random.key(2))
        untrained = accuracy(learner)
        options = {"num_steps": num_steps, "meta_batch": meta_batch}
        state, _ = mk.train.run_steps(algorithm, optimiser, state, glyphs("val"), **options)
        trained = accuracy(state.learner)
    assert trained.low > untrained.high, f"{trained} is not above {untrained}"
    return untrained, trained
