"""Closed-form heads: optimality, identities, the published configurations, policies, edges and errors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import (
    Affine,
    assert_gradient_is_central_difference,
    assert_training_helps,
    clusters,
    flat,
    random_episode,
    random_examples,
)
from jax.scipy.linalg import cho_factor

import metakit as mk
from metakit.learners import _closed_form, ridge
from metakit.learners.ridge import (
    Ridge,
    adapt,
    logistic_regression,
    lrd2,
    meta_loss,
    predict,
    r2d2,
    ridge_regression,
)

FORMS = ("auto", "primal", "woodbury")
POLICIES = ("joint", "transductive", "inductive")
WIDE, TALL = (5, 9), (12, 4)  # support examples, features


@eqx.filter_jit
def outputs(learner, support, x):
    """Adapt and predict; compiled, since op-by-op dispatch is most of the time of tests this small."""
    return predict(adapt(learner, support), x)


@eqx.filter_jit
def weights_of(learner, support):
    return adapt(learner, support).weights


def labelled(key, shape, way=3):
    return random_examples(key, [i % way for i in range(shape[0])], way, shape[1])


def real_episode(key, out=(), d=4):
    keys = jax.random.split(key, 4)
    x, y = jax.random.normal(keys[0], (6, d)), jax.random.normal(keys[1], (6, *out))
    xq, yq = jax.random.normal(keys[2], (3, d)), jax.random.normal(keys[3], (3, *out))
    return mk.Episode(mk.Examples(x, y), mk.Examples(xq, yq))


def with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(ridge, mk.Algorithm)


# Ridge regression


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
def test_the_head_is_optimal(shape, key):
    """torchmeta's test_ridge_regression*. Catches weights at which the penalised loss still has a gradient."""
    support = labelled(key, shape)
    targets = np.eye(3)[np.asarray(support.y)]
    for penalty, form, reduction, intercept in itertools.product((0.1, 1.0), FORMS, ("sum", "mean"), (True, False)):
        options = {"penalty": penalty, "form": form, "reduction": reduction, "intercept": intercept}
        weights = adapt(Ridge(flat, norm_policy="transductive", **options), support).weights
        z = with_ones(support.x) if intercept else np.asarray(support.x)

        def slope(w, z=z, penalty=penalty, count=shape[0] if reduction == "mean" else 1):
            return 2 * z.T @ (z @ w - targets) / count + 2 * penalty * w

        np.testing.assert_allclose(slope(weights), 0, atol=1e-12, err_msg=str(options))
        assert np.abs(slope(0.9 * np.asarray(weights))).max() > 1e-3


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_dual_equals_primal(head, shape, key):
    """T20b. Catches a form that solves another problem, or (torchmeta) keeps the gradient from the embedding."""
    support, query = labelled(key, shape), labelled(jax.random.fold_in(key, 1), (6, shape[1]))
    task = mk.Episode(support, query)

    def both(form):
        learner = Ridge(flat, head=head, penalty=0.3, form=form, norm_policy="transductive")
        slopes = eqx.filter_jit(jax.grad(lambda x: meta_loss(learner, eqx.tree_at(lambda t: t.support.x, task, x))))
        return weights_of(learner, support), slopes(support.x)

    primal, woodbury = both("primal"), both("woodbury")
    for a, b in zip(primal, woodbury, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert (np.abs(primal[1]).max(axis=1) > 1e-5).all()


@pytest.mark.parametrize(
    ("form", "shape", "side"),
    [
        ("auto", (4, 9), 4),
        ("auto", (4, 4), 4),
        ("auto", (9, 4), 4),
        ("primal", (4, 9), 9),
        ("woodbury", (9, 4), 9),
    ],
)
def test_the_smaller_system_is_solved(form, shape, side, monkeypatch):
    """Catches a choice by shape that is the wrong way round: a 1600 by 1600 system for five images."""
    sizes = []

    def factor(matrix, **options):
        sizes.append(matrix.shape)
        return cho_factor(matrix, **options)

    monkeypatch.setattr(_closed_form, "cho_factor", factor)
    ridge_regression(jnp.ones(shape), jnp.ones((shape[0], 2)), jnp.ones(()), form=form)
    assert sizes == [(side, side)]


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
def test_equals_least_squares_on_augmented_rows(shape, key):
    """Catches a wrong penalty, by an independent solver: rows of √λ times the identity with targets of zero."""
    z, y = jax.random.normal(key, shape), jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 2))
    rows = np.concatenate([z, np.sqrt(0.7) * np.eye(shape[1])])
    expected = np.linalg.lstsq(rows, np.concatenate([y, np.zeros((shape[1], 2))]), rcond=None)[0]
    np.testing.assert_allclose(ridge_regression(z, y, jnp.asarray(0.7)), expected, atol=1e-12)


def test_limits_of_the_penalty(key):
    """T20b. Catches a penalty with another power: λW tends to ZᵀY, and without one the support is interpolated."""
    z, y = jax.random.normal(key, WIDE), jax.nn.one_hot(jnp.arange(5) % 3, 3)
    heavy = 1e9 * ridge_regression(z, y, jnp.asarray(1e9))
    np.testing.assert_allclose(heavy, z.T @ y, rtol=1e-6, atol=1e-6)
    for form in ("primal", "woodbury"):
        light = ridge_regression(z, y, jnp.asarray(1e-9), form=form)
        np.testing.assert_allclose(z @ light, y, atol=1e-6)
    # So a heavily penalised head ranks classes by the dot product with the sum of their features.
    support = labelled(key, WIDE)
    x = jax.random.normal(jax.random.fold_in(key, 1), (20, WIDE[1]))
    logits = outputs(Ridge(flat, penalty=1e9, intercept=False), support, x)
    np.testing.assert_array_equal(logits.argmax(1), (x @ support.x.T @ jax.nn.one_hot(support.y, 3)).argmax(1))


@pytest.mark.parametrize(("noise", "spread", "shot"), [(0.1, 1.0, 5), (0.5, 2.0, 1), (0.3, 0.5, 20)])
def test_equals_the_bayes_posterior(noise, spread, shot):
    """T20b. Catches a penalty that is not σ²/τ²: on noisy lines the ridge is the exact posterior mean."""
    tasks = mk.tasks.LinearRegression(shot=shot, queries=4, std=(spread, spread), noise=noise)
    episode = tasks(jax.random.key(shot))
    posterior = mk.tasks.linear_posterior(tasks, episode.support)
    line = posterior.mean[0] * episode.query.x + posterior.mean[1]
    for form in FORMS:
        adapted = adapt(
            Ridge(flat, penalty=noise**2 / spread**2, form=form, norm_policy="transductive"), episode.support
        )
        np.testing.assert_allclose(adapted.weights[:, 0], posterior.mean, atol=1e-12, err_msg=form)
        np.testing.assert_allclose(predict(adapted, episode.query.x), line, atol=1e-12, err_msg=form)


def test_the_learned_penalty_has_no_gradient_at_bayes():
    """Catches a wrong gradient of the penalty: over tasks it vanishes at σ²/τ², and only there."""
    tasks = mk.tasks.LinearRegression(shot=3, queries=10, noise=0.5)

    @eqx.filter_jit
    def slopes(learner, keys):
        one = lambda learner, key: eqx.filter_grad(meta_loss)(learner, tasks(key)).log_penalty.value
        return eqx.filter_vmap(one, in_axes=(None, 0))(learner, keys)

    keys = jax.random.split(jax.random.key(0), 20_000)
    for factor, sign in ((0.25, -1), (1.0, 0), (4.0, 1)):
        draws = slopes(Ridge(flat, penalty=mk.learned(0.25 * factor), norm_policy="transductive"), keys)
        deviations = float(draws.mean() / (draws.std() / np.sqrt(len(keys))))
        # 4 standard errors: a fixed key, and 6e-5 for another.
        assert abs(deviations) < 4 if sign == 0 else sign * deviations > 8


def test_doubling_the_support_changes_the_sum_and_not_the_mean(key):
    """Catches `reduction` that is ignored, or divides the features and not the targets."""
    episode = random_episode(key)
    s = episode.support
    twice = mk.Examples(jnp.concatenate([s.x, s.x]), jnp.concatenate([s.y, s.y]), way=s.way)
    for head, reduction in (("ridge", "mean"), ("ridge", "sum"), ("logistic", "mean")):
        learner = Ridge(flat, head=head, reduction=reduction, num_steps=2)
        once, again = (outputs(learner, support, episode.query.x) for support in (s, twice))
        assert (np.abs(once - again).max() < 1e-12) == (reduction == "mean")


def test_scale_and_bias_act_on_the_logits(key):
    """Catches a scale on the targets or a bias that is scaled."""
    episode = random_episode(key)
    plain, adjusted = (
        outputs(Ridge(flat, **options), episode.support, episode.query.x)
        for options in ({}, {"scale": 3.0, "bias": mk.learned(-2.0)})
    )
    np.testing.assert_allclose(adjusted, 3 * plain - 2, atol=1e-12)


# Logistic regression


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
def test_logistic_regression_converges_to_the_optimum(shape, key):
    """Catches a Newton step of another objective: after enough of them the penalised loss has no gradient."""
    support = labelled(key, shape)
    learner = Ridge(flat, head="logistic", penalty=0.5, num_steps=12, norm_policy="transductive")
    weights, z = weights_of(learner, support), with_ones(support.x)
    signs = 2 * jax.nn.one_hot(support.y, 3) - 1

    def objective(w):
        return jnp.sum(jax.nn.softplus(-signs * (z @ w))) + 0.25 * jnp.sum(w**2)

    np.testing.assert_allclose(jax.grad(objective)(weights), 0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_logistic_regression_is_the_published_iteration(num_steps, key):
    """Catches a start other than zero, a step too many, or weights of the step before: the released loop, in numpy."""
    support = labelled(key, WIDE)
    x = with_ones(support.x)
    expected = []
    for c in range(3):
        y, w = np.asarray(support.y == c, float), np.zeros(x.shape[1])
        for _ in range(num_steps):
            eta = x @ w
            mu = 1 / (1 + np.exp(-eta))
            s = mu * (1 - mu)
            working = eta + (y - mu) / s
            w = x.T @ np.linalg.inv(x @ x.T + 0.7 * np.diag(1 / s)) @ working
        expected.append(w)
    learner = lrd2(flat, num_steps=num_steps, penalty=0.7, norm_policy="transductive")
    np.testing.assert_allclose(weights_of(learner, support), np.stack(expected, 1), atol=1e-10)


def test_confident_scores_stay_finite():
    """Catches a division by μ(1 - μ), which float32 rounds to zero beyond scores of 17."""
    x = jnp.array([[100.0], [-100.0]], jnp.float32)
    members = jnp.array([[True, False], [False, True]])

    def total(x):
        return jnp.sum(jnp.abs(logistic_regression(x, members, jnp.asarray(1e-6, jnp.float32), num_steps=30)))

    value, slope = jax.value_and_grad(total)(x)
    scores = float(value) / 2 * 100
    # The optimum of two examples: 2 · 100 σ(-100 w) = 1e-6 w.
    np.testing.assert_allclose(200 / (1 + np.exp(scores)), 1e-6 * scores / 100, rtol=1e-2)
    assert scores > 17
    assert np.isfinite(slope).all()


# Regression


@pytest.mark.parametrize("out", [(), (1,), (2, 3)])
def test_real_targets(out, key):
    """Catches targets of several axes flattened wrongly, and [n] targets that come back as [n, 1]."""
    episode = real_episode(key, out)
    z = with_ones(episode.support.x)
    y = np.asarray(episode.support.y).reshape(6, -1)
    expected = with_ones(episode.query.x) @ np.linalg.solve(z.T @ z + 0.5 * np.eye(5), z.T @ y)
    predicted = outputs(Ridge(flat, penalty=0.5), episode.support, episode.query.x)
    assert predicted.shape == (3, *out)
    np.testing.assert_allclose(predicted.reshape(3, -1), expected, atol=1e-12)
    loss = meta_loss(Ridge(flat, penalty=0.5), episode)
    np.testing.assert_allclose(loss, np.mean((predicted - episode.query.y) ** 2), rtol=1e-12)


def test_own_loss_is_used(key):
    """Catches a `loss` field that is ignored."""
    episode = random_episode(key)

    def hinge(outputs, targets, *, reduction):
        assert reduction == "mean"
        return jnp.mean(outputs[:, 0])

    logits = outputs(Ridge(flat), episode.support, episode.query.x)
    np.testing.assert_allclose(meta_loss(Ridge(flat, loss=hinge), episode), logits[:, 0].mean(), rtol=1e-12)


# The learner


def test_published_configurations(key):
    """Catches numbers of another run: the released R2-D2 divides Z and Y by √n, λ = 50, scale 10."""
    episode = random_episode(key)
    z, zq, n = with_ones(episode.support.x), with_ones(episode.query.x), 6
    y = np.eye(3)[np.asarray(episode.support.y)]
    w = (z / np.sqrt(n)).T @ np.linalg.inv(z @ z.T / n + 50 * np.eye(n)) @ (y / np.sqrt(n))
    np.testing.assert_allclose(outputs(r2d2(flat), episode.support, episode.query.x), 10 * zq @ w, atol=1e-12)
    assert mk.trainable(r2d2(flat)).scale.value
    assert mk.trainable(r2d2(flat)).bias.value
    learner = lrd2(flat)
    assert (learner.head, learner.reduction, learner.num_steps, float(learner.scale.value)) == ("logistic", "sum", 5, 1)
    np.testing.assert_allclose([r2d2(flat).penalty, learner.penalty], 50.0)
    assert not r2d2(flat, scale=2.0).scale.learned


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"norm_policy": "joint"},
        {"norm_policy": "transductive", "form": "primal", "reduction": "mean"},
        {"norm_policy": "inductive", "form": "woodbury", "intercept": False},
        {"norm_policy": "joint", "head": "logistic", "form": "primal"},
        {"norm_policy": "inductive", "head": "logistic", "form": "woodbury", "num_steps": 2},
        {"norm_policy": "joint", "real": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_gradient_equals_central_differences(options, key):
    """T20b. Catches a wrong derivative of the solution, or of the penalty, the scale or the bias."""
    options = dict(options)
    episode = real_episode(key, (2,)) if options.pop("real", False) else random_episode(key)
    learner = Ridge(
        Affine(4, 3, key, norm=True), penalty=mk.learned(0.8), scale=mk.learned(3.0), bias=mk.learned(0.2), **options
    )
    assert_gradient_is_central_difference(lambda m: meta_loss(m, episode), learner)


@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_second_derivatives_exist(head, key):
    """Catches a solve that differentiates once only: the gradient's own slope against central differences."""
    episode = random_episode(key)

    def loss(log_penalty):
        learner = Ridge(flat, head=head, num_steps=2)
        return meta_loss(eqx.tree_at(lambda m: m.log_penalty.value, learner, log_penalty), episode)

    slope = jax.jit(jax.grad(loss))
    curvature = jax.jit(jax.grad(jax.grad(loss)))(0.1)
    np.testing.assert_allclose(curvature, (slope(0.1 + 1e-5) - slope(0.1 - 1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_a_class_without_support_has_probability_zero_and_finite_gradients(head, key):
    """Catches an absent class that wins with a score of 0 over negative ones."""
    support = random_examples(key, [0, 0, 2, 2], way=4)
    query = random_examples(jax.random.fold_in(key, 1), [0, 2], way=4)
    learner = Ridge(Affine(4, 3, key), head=head)
    logits = outputs(learner, support, query.x)
    assert jnp.isneginf(logits[:, jnp.array([1, 3])]).all()
    assert jnp.isfinite(logits[:, jnp.array([0, 2])]).all()
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, mk.Episode(support, query))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_outside_the_range_shows(wrong, norm_policy, key):
    """Catches a label of -1 that wraps around to the last class, or an example that is dropped without a word."""
    support = random_examples(key, [0, 1, 2, wrong], way=3)
    assert jnp.isnan(outputs(Ridge(flat, norm_policy=norm_policy), support, support.x[:2])).all()


@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_noiseless_clusters(head, key):
    """Catches a sign error: the example that equals the query must score highest."""
    episode = clusters(key, way=5, shot=3, queries=4)
    logits = outputs(Ridge(flat, head=head, penalty=0.1), episode.support, episode.query.x)
    assert mk.metrics.accuracy(logits, episode.query.y) >= 0.95


@pytest.mark.parametrize("norm_policy", POLICIES)
def test_what_a_prediction_depends_on(norm_policy, key):
    """Catches an inductive policy that reads the other queries, or a transductive one that does not."""
    episode = random_episode(key)
    adapted = adapt(Ridge(Affine(4, 3, key, norm=True), norm_policy=norm_policy), episode.support)
    assert (adapted.weights is None) == (norm_policy == "joint")
    together, fewer = predict(adapted, episode.query.x)[:2], predict(adapted, episode.query.x[:2])
    assert (np.abs(together - fewer).max() < 1e-12) == (norm_policy == "inductive")


def test_policies_agree_without_batch_norm(key):
    """Catches a policy that changes anything but statistics: one solves in `adapt`, the other in `predict`."""
    episode = random_episode(key)
    losses = [meta_loss(Ridge(Affine(4, 3, key), norm_policy=p), episode) for p in ("joint", "transductive")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)


def test_adapted_tasks_can_be_stacked(key):
    """Catches an adapted state that does not survive vmap: adapt many tasks, then predict in all of them."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = Ridge(Affine(4, 3, key, norm=True), head="logistic", norm_policy="inductive")
    adapted = eqx.filter_vmap(adapt, in_axes=(None, 0))(learner, episodes.support)
    stacked = eqx.filter_vmap(predict)(adapted, episodes.query.x)
    one = outputs(learner, random_episode(keys[1]).support, episodes.query.x[1])
    np.testing.assert_allclose(stacked[1], one, atol=1e-12)


def test_changing_numbers_does_not_trace_again(key):
    """Catches a penalty, scale or bias that is a static field."""
    traces = 0

    @eqx.filter_jit
    def loss(learner, episode):
        nonlocal traces
        traces += 1
        return meta_loss(learner, episode)

    episode = random_episode(key)
    for number in (1.0, 2, 50.0):
        loss(Ridge(flat, penalty=number, scale=number, bias=number), episode)
    assert traces == 1


@pytest.mark.parametrize("head", ["ridge", "logistic"])
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_float32_network_under_64_bits(head, norm_policy, key):
    """Catches a penalty or a constant of another dtype, which strict promotion refuses."""
    episode = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, random_episode(key))
    assert meta_loss(Ridge(flat, head=head, norm_policy=norm_policy, reduction="mean"), episode).dtype == jnp.float32


def test_only_learned_numbers_are_trained():
    """Catches training that moves a fixed penalty, and a learned one that stays."""
    fixed, free = mk.trainable(Ridge(flat)), mk.trainable(Ridge(flat, penalty=mk.learned(2.0)))
    assert not any([fixed.log_penalty.value, fixed.scale.value, fixed.bias.value])
    assert free.log_penalty.value


def _labelled(**changes):
    return mk.Examples(**({"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 0, 1]), "way": 2} | changes))


@pytest.mark.parametrize(
    ("options", "support", "message"),
    [
        ({}, _labelled(way=None), r"support\.way is missing.*Examples\(x, labels, way="),
        ({}, _labelled(y=jnp.zeros((4, 2), int)), r"support\.y must hold one label per example.*\[4, 2\]"),
        ({}, _labelled(x=jnp.ones((4, 3, 2))), r"embed must map a batch of \d examples to features"),
        (
            {"head": "logistic"},
            _labelled(y=jnp.ones((4,)), way=None),
            r"support\.y must hold integer class labels for Ridge",
        ),
    ],
)
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_support_is_refused(options, support, message, norm_policy):
    """Catches integers regressed as if they were real, a logistic head on real targets, and features not [n, d]."""
    with pytest.raises(ValueError, match=message):
        outputs(Ridge(lambda x: x, norm_policy=norm_policy, **options), support, support.x)


def test_wrong_queries_are_refused():
    """Catches a broadcast of one query without its leading axis, or of features of another size."""
    adapted = adapt(Ridge(flat, norm_policy="transductive"), _labelled())
    for x in (jnp.ones((5, 2)), jnp.ones((3,))):
        with pytest.raises(ValueError, match=r"x must hold examples of the support's shape \[3\], got"):
            predict(adapted, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "logit"}, r"head='logit' is not known. Did you mean 'logistic'"),
        ({"form": "dual"}, r"form='dual' is not known"),
        ({"reduction": "average"}, r"reduction='average' is not known"),
        ({"norm_policy": "joined"}, r"norm_policy='joined' is not known. Did you mean 'joint'"),
        ({"penalty": 0.0}, r"penalty must be a finite number above 0, got 0"),
        ({"penalty": -1.0}, r"penalty must be a finite number above 0, got -1"),
        ({"penalty": mk.fixed(float("nan"))}, r"penalty must be a finite number above 0, got nan"),
        ({"penalty": jnp.ones((3,))}, r"penalty must be one number, got shape \[3\]"),
        ({"scale": jnp.ones((3,))}, r"scale must be one number, got shape \[3\]"),
        ({"bias": jnp.ones((3,))}, r"bias must be one number, got shape \[3\]"),
        ({"num_steps": 0}, r"num_steps is the number of Newton steps and must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    """Catches a misspelt option that falls back to the default, and a penalty whose system is singular."""
    with pytest.raises(ValueError, match=message):
        Ridge(flat, **options)


def test_bad_arguments_of_the_solvers_are_refused():
    """Catches the same where the solvers are used on their own."""
    z, one = jnp.ones((2, 3)), jnp.ones(())
    with pytest.raises(ValueError, match="form='dual' is not known"):
        ridge_regression(z, z, one, form="dual")
    with pytest.raises(ValueError, match="num_steps is the number of Newton steps"):
        logistic_regression(z, jnp.ones((2, 2), bool), one, num_steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", [r2d2, lrd2])
def test_training_on_glyphs_helps(configuration):
    """Catches a learner that cannot be trained as published: images of scripts it has never seen."""
    embed = mk.nn.Conv4(1, 28, width=16, key=jax.random.key(0))
    assert_training_helps(ridge, configuration(embed))
