"""Gradient histograms with logistic regression: the baseline of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import metakit as mk
from metakit.evaluate.baselines import gradient_histograms, nearest_neighbour


def test_an_edge_has_one_orientation():
    """Catches orientations that are mixed up, or votes that leave their cell."""
    x = jnp.zeros((2, 1, 28, 28)).at[0, 0, :, 12:].set(1.0).at[1, 0, 12:, :].set(1.0)
    histograms = gradient_histograms.features(x).reshape(2, 6, 6, 4, 9)
    across, along = (np.unique(np.nonzero(h > 1e-3)[-1]) for h in histograms)
    # A vertical edge has a gradient to the right, at 0 degrees; a horizontal one at 90, half-way between bins 4 and 5.
    assert across.tolist() == [0]
    assert along.tolist() == [4, 5]
    # The edge lies between columns 11 and 12, in cells 2 and 3 of seven.
    columns = np.unique(np.nonzero(histograms[0].sum((-2, -1)) > 1e-3)[1])
    assert columns.tolist() == [1, 2, 3]


def test_of_several_channels_the_steepest_counts():
    """Catches colours that are averaged, so that an edge between two of the same grey vanishes."""
    x = jnp.zeros((1, 3, 28, 28)).at[0, 0, :, :14].set(1.0).at[0, 1, :, 14:].set(1.0)
    assert float(gradient_histograms.features(x).sum()) > 1
    grey = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    assert float(gradient_histograms.features(grey).sum()) < 1e-6


@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 1), (5, 4)])
def test_the_classifier_is_logistic_regression(way, shot):
    """Catches too few steps, a wrong constant, or weights that are no combination of the examples: beside an
    independent minimiser, to 1e-4 of the logits."""
    key = jax.random.key(0)
    x = jax.random.uniform(key, (way * shot, 1, 12, 12))
    y = jnp.arange(way * shot, dtype=jnp.int32) % way
    adapted = gradient_histograms.adapt(None, mk.Examples(x, y, way))
    z = np.asarray(gradient_histograms.features(x))
    z = z - z.mean(0)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)

    def loss(flat):
        weights = flat.reshape(z.shape[1], way)
        scores = z @ weights
        probabilities = scipy.special.softmax(scores, axis=1)
        value = -np.log(probabilities[np.arange(len(y)), y]).sum() + 0.5 * (weights**2).sum()
        return value, (z.T @ (probabilities - np.eye(way)[np.asarray(y)]) + weights).ravel()

    best = scipy.optimize.minimize(loss, np.zeros(z.shape[1] * way), jac=True, options={"gtol": 1e-9})
    query = jax.random.uniform(jax.random.key(1), (7, 1, 12, 12))
    q = np.asarray(gradient_histograms.features(query)) - np.asarray(adapted.mean)
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    expected = q @ best.x.reshape(z.shape[1], way)
    np.testing.assert_allclose(gradient_histograms.predict(adapted, query), expected, atol=1e-4)


def test_it_maps_over_tasks():
    """Catches an axis that a task's own mean or steps run over."""
    pool = mk.tasks.ImagePool(np.random.default_rng(0).integers(0, 255, (6, 5, 1, 12, 12), "uint8"))
    sampler = mk.tasks.Episodes(pool, 3, 2, 2)
    tasks = jax.vmap(sampler)(jax.random.split(jax.random.key(0), 4))

    def logits(task):
        return gradient_histograms.predict(gradient_histograms.adapt(None, task.support), task.query.x)

    together = jax.vmap(logits)(tasks)
    for i in range(4):
        np.testing.assert_allclose(together[i], logits(jax.tree.map(lambda leaf, i=i: leaf[i], tasks)), atol=1e-10)


def test_it_beats_pixels_on_shapes_that_are_shifted():
    """Catches features that are no better than the pixels they come from."""
    random = np.random.default_rng(0)
    images = np.zeros((8, 10, 1, 28, 28), np.uint8)
    for c in range(8):
        angle = np.pi * c / 8
        for e in range(10):
            middle = 13 + random.integers(-4, 5, 2)
            for t in np.linspace(-8, 8, 60):
                i, j = (middle + t * np.array([np.sin(angle), np.cos(angle)])).round().astype(int)
                images[c, e, 0, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1] = 255
    tasks = mk.tasks.Episodes(mk.tasks.ImagePool(images), 4, 1, 3)
    options = {"num_tasks": 100, "metrics": {"accuracy": mk.metrics.accuracy}}
    ours, pixels = (
        mk.evaluate.student_t(mk.evaluate.scores(one, None, tasks, jax.random.key(0), **options)["accuracy"])
        for one in (gradient_histograms, nearest_neighbour)
    )
    assert ours.low > pixels.high


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (mk.Examples(jnp.zeros((2, 1, 28, 28)), jnp.zeros((2, 1))), "needs class labels"),
        (
            mk.Examples(jnp.zeros((2, 7)), jnp.array([0, 1]), way=2),
            r"needs floating-point images .*, got float64\[2, 7\]",
        ),
        (mk.Examples(jnp.zeros((2, 1, 6, 28)), jnp.array([0, 1]), way=2), "at least 8 pixels a side, got 6x28"),
    ],
)
def test_what_it_cannot_read_is_named(support, message):
    """Catches a shape error of an einsum."""
    with pytest.raises(ValueError, match=message):
        gradient_histograms.adapt(None, support)
