"""Gradient histograms with logistic regression: the baseline of images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import metakit as mk
from metakit.evaluate.baselines import gradient_histograms, nearest_neighbour


def test_it_is_an_algorithm():
    """Catches a baseline that evaluation does not accept."""
    assert isinstance(gradient_histograms, mk.Algorithm)


def test_an_edge_has_one_orientation():
    """Catches orientations that are mixed up, votes that go astray and blocks that are not of length 1."""
    x = jnp.zeros((2, 1, 28, 28)).at[0, 0, :, 12:].set(1.0).at[1, 0, 12:, :].set(1.0)
    vertical, horizontal = gradient_histograms.features(x).reshape(2, 6, 6, 2, 2, 9)
    # A vertical edge has a gradient to the right, at 0 degrees. It lies on the border of the cells 2 and 3, which get
    # as many votes; of each block that holds both, four cells are alike, and of each that holds one, two are.
    expected = np.zeros((6, 6, 2, 2, 9))
    expected[:, 2, :, :, 0] = 1 / 2
    expected[:, 1, :, 1, 0] = expected[:, 3, :, 0, 0] = 1 / np.sqrt(2)
    inner = slice(1, -1)  # the first and the last cell get fewer votes than those with a neighbour on either side
    np.testing.assert_allclose(vertical[inner], expected[inner], atol=2e-5)
    assert not np.any(np.where(expected > 0, 0.0, vertical))
    # The gradient of a horizontal one is at 90 degrees, half-way between the orientations 4 and 5.
    turned = np.swapaxes(np.swapaxes(expected, 0, 1), 2, 3)[..., [1, 2, 3, 4, 0, 0, 6, 7, 8]] / np.sqrt(2)
    np.testing.assert_allclose(horizontal[:, inner], turned[:, inner], atol=2e-5)


def histograms(image):
    """The features of one image, pixel by pixel."""
    height, width = image.shape[1:]
    cells = np.zeros((9, 9, 9))  # a frame of one cell around the 7 x 7 takes the votes that fall outside
    for row, column in itertools.product(range(height), range(width)):
        above, below = image[:, max(row - 1, 0), column], image[:, min(row + 1, height - 1), column]
        before, after = image[:, row, max(column - 1, 0)], image[:, row, min(column + 1, width - 1)]
        gradients = zip((below - above) / 2, (after - before) / 2, strict=True)
        down, right = max(gradients, key=lambda gradient: gradient[0] ** 2 + gradient[1] ** 2)
        degrees = np.degrees(np.arctan2(down, right)) % 180
        r, c, b = (row + 0.5) * 7 / height + 0.5, (column + 0.5) * 7 / width + 0.5, degrees / 20
        for i, j, k in itertools.product(range(2), range(2), range(2)):
            share = abs(1 - i - r % 1) * abs(1 - j - c % 1) * abs(1 - k - b % 1)
            cells[int(r) + i, int(c) + j, (int(b) + k) % 9] += share * np.hypot(down, right)
    blocks = [cells[i : i + 2, j : j + 2].ravel() for i in range(1, 7) for j in range(1, 7)]
    return np.concatenate([block / np.sqrt(block @ block + 1e-4) for block in blocks])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 9), (1, 29, 20), (3, 21, 33)])
def test_the_features_are_those_of_a_loop_over_pixels(shape):
    """Catches rows taken for columns, a channel that is left out, and sizes that cells do not divide."""
    x = np.random.default_rng(0).uniform(size=(2, *shape))
    expected = np.stack([histograms(image) for image in x])
    np.testing.assert_allclose(gradient_histograms.features(jnp.asarray(x)), expected, atol=1e-9)


def test_of_several_channels_the_steepest_counts():
    """Catches colours that are averaged, so that an edge between two of the same grey vanishes."""
    x = jnp.zeros((1, 3, 28, 28)).at[0, 0, :, :14].set(1.0).at[0, 1, :, 14:].set(1.0)
    assert float(gradient_histograms.features(x).sum()) > 1
    grey = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    assert float(gradient_histograms.features(grey).sum()) < 1e-6


@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 1), (5, 5), (100, 1)])
def test_the_classifier_is_logistic_regression(way, shot):
    """Catches too few steps, a wrong constant, or weights that are no combination of the examples: beside SciPy's
    minimiser, which knows all weights, to 1e-4 of the logits."""
    x = jax.random.uniform(jax.random.key(0), (way * shot, 1, 12, 12))
    y = np.arange(way * shot) % way
    z = np.asarray(gradient_histograms.features(x))
    mean = z.mean(0)
    z = (z - mean) / np.linalg.norm(z - mean, axis=1, keepdims=True)

    def loss(flat):
        weights = flat.reshape(-1, way)
        logs = scipy.special.log_softmax(z @ weights, axis=1)
        gradient = 10 * z.T @ (np.exp(logs) - np.eye(way)[y]) + weights
        return -10 * logs[np.arange(len(y)), y].sum() + 0.5 * (weights**2).sum(), gradient.ravel()

    start = np.zeros(z.shape[1] * way)
    options = {"maxiter": 1000, "ftol": 0, "gtol": 1e-7}
    best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    # The loss is 1-strongly convex: the solution is no further away than its gradient is long.
    assert np.linalg.norm(loss(best.x)[1]) < 1e-5
    query = jax.random.uniform(jax.random.key(1), (7, 1, 12, 12))
    q = np.asarray(gradient_histograms.features(query)) - mean
    expected = q / np.linalg.norm(q, axis=1, keepdims=True) @ best.x.reshape(-1, way)
    adapted = gradient_histograms.adapt(None, mk.Examples(x, jnp.asarray(y, jnp.int32), way))
    np.testing.assert_allclose(gradient_histograms.predict(adapted, query), expected, atol=1e-4)


def test_the_loss_is_the_querys():
    """Catches a loss of the support set, or a sum."""
    images = jax.random.uniform(jax.random.key(0), (7, 1, 12, 12))
    support = mk.Examples(images[:3], jnp.arange(3), way=3)
    query = mk.Examples(images[3:], jnp.array([0, 1, 2, 0]), way=3)
    logits = gradient_histograms.predict(gradient_histograms.adapt(None, support), query.x)
    expected = -np.mean(scipy.special.log_softmax(logits, axis=1)[np.arange(4), query.y])
    np.testing.assert_allclose(gradient_histograms.meta_loss(None, mk.Episode(support, query)), expected, rtol=1e-9)


def test_it_maps_over_tasks():
    """Catches an axis that a task's own mean or steps run over."""
    pool = mk.tasks.ImagePool(np.random.default_rng(0).integers(0, 255, (6, 5, 1, 12, 12), "uint8"))
    tasks = jax.vmap(mk.tasks.Episodes(pool, 3, 2, 2))(jax.random.split(jax.random.key(0), 4))

    def logits(task):
        return gradient_histograms.predict(gradient_histograms.adapt(None, task.support), task.query.x)

    together = jax.vmap(logits)(tasks)
    for i in range(4):
        np.testing.assert_allclose(together[i], logits(jax.tree.map(lambda leaf, i=i: leaf[i], tasks)), atol=1e-5)


def bars():
    """Eight classes of bars at an angle, shifted by up to four pixels."""
    random = np.random.default_rng(0)
    images = np.zeros((8, 10, 1, 28, 28), np.uint8)
    for kind, example in itertools.product(range(8), range(10)):
        angle, middle = np.pi * kind / 8, 13 + random.integers(-4, 5, 2)
        for t in np.linspace(-8, 8, 60):
            row, column = (middle + t * np.array([np.sin(angle), np.cos(angle)])).round().astype(int)
            images[kind, example, 0, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = 255
    return mk.tasks.ImagePool(images)


def test_it_beats_pixels_on_shapes_that_are_shifted():
    """Catches features that are no better than the pixels they come from."""
    tasks, accuracy = mk.tasks.Episodes(bars(), 4, 1, 3), {"accuracy": mk.metrics.accuracy}
    ours, pixels = (
        mk.evaluate.student_t(
            mk.evaluate.scores(one, None, tasks, jax.random.key(0), num_tasks=100, metrics=accuracy)["accuracy"]
        )
        for one in (gradient_histograms, nearest_neighbour)
    )
    assert ours.low > pixels.high


def test_a_label_that_is_no_class_shows():
    """Catches a label out of range that is taken for an example of no class, without a word."""
    images = jax.random.uniform(jax.random.key(0), (2, 1, 12, 12))
    adapted = gradient_histograms.adapt(None, mk.Examples(images, jnp.array([0, 2]), way=2))
    assert jnp.all(jnp.isnan(gradient_histograms.predict(adapted, images)))


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (mk.Examples(jnp.zeros((2, 1, 28, 28)), jnp.zeros((2, 1))), "needs class labels"),
        (
            mk.Examples(jnp.zeros((2, 7)), jnp.array([0, 1]), way=2),
            r"needs floating-point images .*, got float64\[2, 7\]",
        ),
        (
            mk.Examples(jnp.zeros((2, 1, 28, 28), jnp.uint8), jnp.array([0, 1]), way=2),
            r"needs floating-point images .*, got uint8\[2, 1, 28, 28\]",
        ),
        (mk.Examples(jnp.zeros((2, 1, 6, 28)), jnp.array([0, 1]), way=2), "at least 8 pixels a side, got 6x28"),
    ],
)
def test_what_it_cannot_read_is_named(support, message):
    """Catches a shape error of an einsum, and integers that gradients would wrap around in."""
    with pytest.raises(ValueError, match=message):
        gradient_histograms.adapt(None, support)
