"""MetaGAN: the class of fakes, the two players, the base learners and bad input."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit import (
    maml,
    mann,
    matching,
    meta_lstm,
    metagan,
    prototypical,
    relation,
    reptile,
    ridge,
    snail,
    statistician,
    versa,
)


def classification(key, way=3, shot=2, queries=3):
    keys = jax.random.split(key, 2)
    y = jnp.tile(jnp.arange(way), shot + queries)
    x = jax.random.normal(keys[0], (way, 4))[y] + 0.3 * jax.random.normal(keys[1], (len(y), 4))
    cut = way * shot
    return mk.Episode(mk.Examples(x[:cut], y[:cut], way=way), mk.Examples(x[cut:], y[cut:], way=way))


TASK = classification(jax.random.key(1))
KEY = jax.random.key(2)
mlp = functools.partial(mk.nn.MLP, width=6, depth=1, activation=jnp.tanh)
PROTOTYPICAL = prototypical.Prototypical(mlp(4, 3, key=jax.random.key(3)), norm_policy="transductive")
MAML = maml.MAML(mlp(4, 3, key=jax.random.key(3)), inner=mk.inner.SGD(0.3), num_steps=2)


def against(algorithm, base, **options):
    options = {
        "generator": mlp(2 + 3, 4, key=jax.random.key(4)),
        "encoder": mlp(4, 3, key=jax.random.key(5)),
        "noise_size": 2,
        "num_fakes": 5,
        "adapt_to_fakes": algorithm is maml,
        "loss": metagan.DiscriminatorLoss(unlabelled_weight=0.7, fake_weight=1.3, offset=mk.learned(0.5)),
        **options,
    }
    return metagan.MetaGAN(algorithm, base, **options)


def cases(test):
    bases = [pytest.param(prototypical, PROTOTYPICAL, id="prototypical"), pytest.param(maml, MAML, id="maml")]
    return pytest.mark.parametrize(("algorithm", "base"), bases)(test)


def assert_close(actual, expected, rtol=1e-9, atol=1e-13):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# The class of fakes


def test_the_fake_class_is_one_more_class_with_logit_zero():
    """Catches a fake probability that is no part of one softmax: T26, against the softmax over N + 1 classes."""
    logits = 5 * jax.random.normal(KEY, (20, 4))
    real, fake = metagan.real_and_fake(logits)
    joint = jax.nn.log_softmax(jnp.pad(logits, ((0, 0), (0, 1))), axis=1)
    np.testing.assert_allclose(fake, joint[:, 4], rtol=1e-13)
    np.testing.assert_allclose(joint[:, :4], jax.nn.log_softmax(logits, axis=1) + real[:, None], rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(real) + jnp.exp(fake), 1.0, rtol=1e-14)
    moved, _ = metagan.real_and_fake(logits, jnp.asarray(2.0))
    np.testing.assert_allclose(moved, metagan.real_and_fake(logits + 2.0)[0], rtol=1e-13)


def test_both_log_probabilities_survive_large_logits():
    """Catches log(1 - p), which is minus infinity, with a NaN gradient, as soon as a player wins clearly."""
    for scale in (800.0, -800.0):
        logits = jnp.asarray([[scale, scale - 1.0]])
        values = jnp.stack(metagan.real_and_fake(logits))
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(jax.jacrev(lambda z: jnp.stack(metagan.real_and_fake(z)))(logits)).all()
        assert float(values.min()) < -799


def test_the_loss_by_hand():
    """Catches fakes averaged with the real examples, a weight on the wrong term, and a sign."""
    logits = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [-1.0, -3.0]])
    labels = jnp.asarray([0, 1, 2])  # 2 is the fake
    loss = metagan.DiscriminatorLoss(unlabelled_weight=0.5, fake_weight=3.0)
    e = np.exp
    class_terms = [np.log(e(1) + e(0)) - 1, np.log(e(0) + e(2)) - 2]
    real_terms = [np.log1p(1 / (e(1) + e(0))), np.log1p(1 / (e(0) + e(2)))]
    fake_term = np.log1p(e(-1) + e(-3))
    each = [class_terms[0] + 0.5 * real_terms[0], class_terms[1] + 0.5 * real_terms[1], 3 * fake_term]
    np.testing.assert_allclose(loss(logits, labels, reduction="none"), each, rtol=1e-12)
    np.testing.assert_allclose(loss(logits, labels, reduction="mean"), np.mean(each[:2]) + each[2], rtol=1e-12)
    np.testing.assert_allclose(loss(logits, labels, reduction="sum"), 3 * (np.mean(each[:2]) + each[2]), rtol=1e-12)
    for wrong in (-1, 3):
        assert jnp.isnan(loss(logits, labels.at[0].set(wrong), reduction="mean"))


# The silenced generator


@pytest.mark.parametrize(
    ("algorithm", "base"),
    [
        pytest.param(prototypical, PROTOTYPICAL, id="prototypical"),
        pytest.param(maml, MAML, id="maml"),
        pytest.param(maml, dataclasses.replace(MAML, reduction="sum/shot"), id="maml_sum"),
    ],
)
def test_without_its_generator_it_is_its_base_learner(algorithm, base):
    """Catches anything that the discriminator's class adds to the classifier: value and gradient must be the base's."""
    silent = metagan.without_generator(against(algorithm, base))
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(metagan.meta_loss))(silent, TASK)
    expected, of_base = eqx.filter_jit(eqx.filter_value_and_grad(algorithm.meta_loss))(base, TASK)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_close(gradient.base, of_base, rtol=1e-10)
    assert not any(leaf.any() for leaf in jax.tree.leaves((gradient.generator, gradient.encoder)))
    outputs = metagan.predict(metagan.adapt(silent, TASK.support), TASK.query.x)
    of_base = algorithm.predict(algorithm.adapt(base, TASK.support), TASK.query.x)
    np.testing.assert_allclose(outputs, of_base, rtol=1e-10)


# The two players


def central_difference(function, tree, seed):
    """Of a function of the tree along a random direction, and that direction."""
    leaves, structure = jax.tree.flatten(eqx.filter(tree, eqx.is_inexact_array))
    static = eqx.filter(tree, eqx.is_inexact_array, inverse=True)
    random = np.random.default_rng(seed)
    direction = [random.normal(size=leaf.shape) for leaf in leaves]

    def at(distance):
        moved = [leaf + distance * d for leaf, d in zip(leaves, direction, strict=True)]
        return function(eqx.combine(jax.tree.unflatten(structure, moved), static))

    return (at(1e-5) - at(-1e-5)) / 2e-5, direction


def along(gradient, direction):
    return sum(float(jnp.sum(g * d)) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))


@pytest.mark.slow
@cases
def test_each_player_descends_its_own_loss(algorithm, base):
    """Catches a player that feels the other's loss, or the other's parameters moving: against central differences.

    The generator's loss is that of fixed adapted classifiers, as documented; the discriminator's goes through
    adaptation.
    """
    learner = against(algorithm, base)
    gradient = eqx.filter_jit(eqx.filter_grad(metagan.meta_loss))(learner, TASK, KEY)

    @eqx.filter_jit
    def of_discriminator(parts):
        moved = eqx.tree_at(lambda l: (l.base, l.loss), learner, parts)
        return metagan.diagnostics(moved, TASK, KEY).discriminator_loss

    adapt_key, fake_key, _, _ = jax.random.split(KEY, 4)
    adapted = metagan.adapt(learner, TASK.support, adapt_key)

    @eqx.filter_jit
    def of_generator(parts):
        moved = eqx.tree_at(lambda l: (l.generator, l.encoder), learner, parts)
        fakes = metagan.generate(moved, TASK.support, fake_key, num_fakes=5)
        real, _ = metagan.real_and_fake(metagan.predict(adapted, fakes), jnp.asarray(0.5))
        return -jnp.mean(real)

    found = eqx.filter_jit(metagan.diagnostics)(learner, TASK, KEY)
    np.testing.assert_allclose(of_generator((learner.generator, learner.encoder)), found.generator_loss, rtol=1e-12)
    players = [
        (of_discriminator, (learner.base, learner.loss), (gradient.base, gradient.loss)),
        (of_generator, (learner.generator, learner.encoder), (gradient.generator, gradient.encoder)),
    ]
    for loss, parts, slopes in players:
        for seed in range(2):
            numerical, direction = central_difference(loss, parts, seed)
            assert abs(float(numerical)) > 1e-4
            np.testing.assert_allclose(along(slopes, direction), numerical, rtol=1e-6)
    total = found.discriminator_loss + found.generator_loss
    np.testing.assert_allclose(eqx.filter_jit(metagan.meta_loss)(learner, TASK, KEY), total, rtol=1e-12)


def test_the_discriminators_loss_is_the_published_one():
    """Catches a missing unlabelled term, fakes among the queries, and the wrong episode half: against its equation."""
    learner = against(prototypical, PROTOTYPICAL)
    _, fake_key, _, _ = jax.random.split(KEY, 4)
    fakes = metagan.generate(learner, TASK.support, fake_key, num_fakes=5)
    adapted = prototypical.adapt(PROTOTYPICAL, TASK.support)
    real, fake = (prototypical.predict(adapted, x) for x in (TASK.query.x, fakes))
    # Softmax over the classes and one more, whose logit is 0 where theirs are moved by the offset.
    joint = lambda logits: jax.nn.log_softmax(jnp.pad(logits + 0.5, ((0, 0), (0, 1))), axis=1)
    supervised = -jnp.mean(jax.nn.log_softmax(real, axis=1)[jnp.arange(9), TASK.query.y])
    unlabelled = -jnp.mean(jnp.log1p(-jnp.exp(joint(real)[:, 3])))
    expected = supervised + 0.7 * unlabelled - 1.3 * jnp.mean(joint(fake)[:, 3])
    found = metagan.diagnostics(learner, TASK, KEY)
    np.testing.assert_allclose(found.discriminator_loss, expected, rtol=1e-10)
    np.testing.assert_allclose(found.classification_loss, supervised, rtol=1e-12)
    np.testing.assert_allclose(found.generator_loss, -jnp.mean(jnp.log1p(-jnp.exp(joint(fake)[:, 3]))), rtol=1e-10)
    assert found.real_accuracy == np.mean(np.asarray(joint(real))[:, 3] < np.log(0.5))
    assert found.fake_accuracy == np.mean(np.asarray(joint(fake))[:, 3] >= np.log(0.5))
    silent = metagan.diagnostics(metagan.without_generator(learner), TASK)
    assert jnp.isnan(silent.fake_accuracy)
    assert silent.generator_loss == 0


def test_over_maml_the_classifier_adapts_to_fakes():
    """Catches fakes that the inner loop never sees: its steps must be those on L_D of support and fakes together."""
    learner = against(maml, MAML)
    fake_key, _ = jax.random.split(KEY)
    fakes = metagan.generate(learner, TASK.support, fake_key, num_fakes=5)
    x, y = jnp.concatenate([TASK.support.x, fakes]), jnp.concatenate([TASK.support.y, jnp.full(5, 3)])
    model = MAML.model
    for _ in range(2):
        step = eqx.filter_grad(lambda m: learner.loss(m(x), y, reduction="mean"))(model)
        model = jax.tree.map(lambda p, g: p - 0.3 * g, model, step)
    adapted = metagan.adapt(learner, TASK.support, KEY)
    np.testing.assert_allclose(metagan.predict(adapted, TASK.query.x), model(TASK.query.x), rtol=1e-10)
    assert adapted.base.way == 3


@pytest.mark.slow
def test_rates_of_their_own_in_the_common_step():
    """Catches labels on the wrong leaves: the common training step must move each player by its own rate."""
    learner = against(prototypical, PROTOTYPICAL)
    rates = {"discriminator": 0.1, "generator": 0.01}
    outer = optax.multi_transform({name: optax.sgd(rate) for name, rate in rates.items()}, metagan.players)
    state = mk.train.init(learner, outer, key=jax.random.key(7))
    tasks = mk.train.draw_tasks(classification, state, meta_batch=2)
    keys = mk.random.task_keys(jax.random.split(jax.random.fold_in(state.key, state.step))[1], 0, 2)
    gradient = eqx.filter_jit(mk.sharding.meta_gradient)(metagan, learner, tasks, keys).gradient
    moved, _ = mk.train.step(metagan, outer, state, tasks)
    moves = mk.trainable(learner)
    for part in ("base", "loss", "generator", "encoder"):
        rate = rates["generator" if part in ("generator", "encoder") else "discriminator"]
        leaves = [jax.tree.leaves(getattr(eqx.filter(t, moves), part)) for t in (learner, moved.learner, gradient)]
        for before, after, slope in zip(*leaves, strict=True):
            assert float(jnp.abs(slope).max()) > 0
            np.testing.assert_allclose(after, before - rate * slope, rtol=1e-9, atol=1e-13)
    assert moved.learner.loss.fake_weight.value == 1.3


# The generator


def test_the_generator_sees_the_task_and_not_the_order_of_its_examples():
    """Catches fakes that ignore the task's code or the noise, and a code that depends on the order of the support."""
    learner = against(prototypical, PROTOTYPICAL)
    draw = functools.partial(metagan.generate, learner, num_fakes=6)
    fakes = draw(TASK.support, KEY)
    assert len(np.unique(np.asarray(fakes)[:, 0])) == 6
    other = classification(jax.random.key(9)).support
    assert float(jnp.abs(fakes - draw(other, KEY)).max()) > 1e-3
    order = jnp.asarray([5, 3, 1, 0, 2, 4])
    shuffled = mk.Examples(TASK.support.x[order], TASK.support.y[order], way=3)
    np.testing.assert_allclose(draw(shuffled, KEY), fakes, rtol=1e-12)


def test_as_many_fakes_as_real_examples_unless_told_otherwise():
    """Catches the count of the support set used for the queries."""
    calls = []

    def generator(codes):
        calls.append(len(codes))
        return codes[:, :4]

    learner = against(maml, MAML, generator=generator, num_fakes=None)
    eqx.filter_eval_shape(metagan.meta_loss, learner, TASK, KEY)
    assert calls == [6, 9]


class AsMaps(eqx.Module):
    """Vectors as maps of one channel, four by four."""

    network: mk.nn.MLP

    def __call__(self, x):
        return self.network(x).reshape(-1, 1, 4, 4)


def relation_base():
    keys = jax.random.split(jax.random.key(3), 2)
    return relation.Relation(AsMaps(mlp(4, 16, key=keys[0])), mk.nn.RelationModule(1, 4, width=4, key=keys[1]))


def snail_base():
    keys = jax.random.split(jax.random.key(3), 3)
    trunk = mk.nn.CausalSequence([mk.nn.TemporalConvolution(3 + 3, 4, length=7, key=keys[0])], length=7)
    return snail.SNAIL(mlp(4, 3, key=keys[1]), trunk, mk.nn.Linear(trunk.out_size, 3, key=keys[2]))


@pytest.mark.parametrize(
    ("algorithm", "make", "adapt_to_fakes"),
    [
        pytest.param(prototypical, lambda: PROTOTYPICAL, False, id="prototypical"),
        pytest.param(ridge, lambda: ridge.Ridge(PROTOTYPICAL.embed), False, id="ridge"),
        pytest.param(ridge, lambda: ridge.lrd2(PROTOTYPICAL.embed), False, id="lrd2"),
        pytest.param(
            statistician,
            lambda: statistician.of_vectors(4, context_size=2, latent_size=2, width=8, depth=1, key=KEY),
            False,
            id="statistician",
        ),
        pytest.param(relation, relation_base, False, id="relation"),
        pytest.param(snail, snail_base, False, id="snail"),
        pytest.param(mann, lambda: mann.MANN(4, 3, hidden=6, slots=6, width=4, heads=1, key=KEY), False, id="mann"),
        pytest.param(maml, lambda: MAML, True, id="maml"),
        pytest.param(maml, lambda: maml.imaml(MAML.model, inner=mk.inner.SGD(0.1), num_steps=5), True, id="imaml"),
        pytest.param(
            reptile, lambda: reptile.Reptile(MAML.model, inner=mk.inner.SGD(0.1), num_steps=2), True, id="reptile"
        ),
        pytest.param(
            reptile,
            lambda: reptile.Reptile(MAML.model, inner=mk.inner.SGD(0.1), num_steps=2, batch_size=3),
            True,
            id="reptile_batches",
        ),
        pytest.param(
            meta_lstm,
            lambda: meta_lstm.MetaLSTM(MAML.model, update=meta_lstm.LearnedUpdate(2, key=KEY), num_steps=2),
            True,
            id="meta_lstm",
        ),
    ],
)
def test_every_base_teaches_the_generator(algorithm, make, adapt_to_fakes):
    """Catches a base learner that only MAML satisfies, a base that needs a key and is given none, and one whose logits
    tell the generator nothing.

    Over Matching Networks, which are refused, the largest entry of its gradient was 1e-18, rounding alone; over
    Relation Networks, whose scores end in a sigmoid, it is 2e-6 to 1e-5 from six starts.
    """
    learner = against(algorithm, make(), adapt_to_fakes=adapt_to_fakes)
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(metagan.meta_loss))(learner, TASK, KEY)
    assert jnp.isfinite(loss)
    for player in (gradient.generator, gradient.encoder):
        leaves = jax.tree.leaves(player)
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in leaves) > 1e-8


@cases
def test_a_wrong_label_is_no_fake(algorithm, base):
    """Catches a label of `way`, one too large, that passes for the mark of a fake."""
    learner = against(algorithm, base)
    loss = eqx.filter_jit(metagan.meta_loss)
    for part in ("support", "query"):
        bad = eqx.tree_at(lambda t, part=part: getattr(t, part).y, TASK, getattr(TASK, part).y.at[0].set(3))
        assert jnp.isnan(loss(learner, bad, KEY))


@pytest.mark.parametrize("norm_policy", ["joint", pytest.param("transductive", marks=pytest.mark.slow)])
def test_real_queries_share_no_batch_norm_with_fakes(norm_policy):
    """Catches statistics that mix both, at which a classifier could look: images through networks with batch norm.

    With weights on the fakes or without, the classifier's own loss must be the base learner's. The generator's images
    must fit the pool's, and both players must get a gradient.
    """
    keys = jax.random.split(KEY, 5)
    images = jax.random.uniform(keys[0], (12, 1, 16, 16))
    labels = jnp.tile(jnp.arange(3), 4)
    task = mk.Episode(mk.Examples(images[:6], labels[:6], way=3), mk.Examples(images[6:], labels[6:], way=3))
    base = prototypical.Prototypical(mk.nn.Conv4(1, 16, width=4, key=keys[1]), norm_policy=norm_policy)
    learner = against(
        prototypical,
        base,
        generator=mk.nn.ImageGenerator(2 + 4, 1, 16, width=4, key=keys[2]),
        encoder=mk.nn.Conv4(1, 16, width=4, key=keys[3]),
    )

    @eqx.filter_jit
    def everything(learner):
        loss = lambda learner: metagan.meta_loss(learner, task, keys[4])
        return metagan.diagnostics(learner, task, keys[4]), eqx.filter_grad(loss)(learner)

    found, gradient = everything(learner)
    expected = eqx.filter_jit(prototypical.meta_loss)(base, task)
    np.testing.assert_allclose(found.classification_loss, expected, rtol=1e-10)
    for part in (gradient.base.embed, gradient.generator, gradient.encoder):
        kernels = [leaf for leaf in jax.tree.leaves(part) if leaf.ndim == 4]
        assert len(kernels) >= 2
        assert all(float(jnp.abs(kernel).max()) > 0 for kernel in kernels)


# Training


@pytest.mark.slow
def test_training_helps_and_both_players_play():
    """Catches a game that destroys the classifier, and a discriminator that tells nothing apart.

    Trained against a generator, a Prototypical Network must beat its untrained self by disjoint 95 % intervals, not
    fall below one trained alone by more than their intervals, and know real from fake better than by chance.
    """

    def tasks(key):
        keys = jax.random.split(key, 2)
        y = jnp.tile(jnp.arange(3), 5)
        centres = jnp.pad(2 * jax.random.normal(keys[0], (3, 2)), ((0, 0), (0, 2)))
        x = centres[y] + jnp.asarray([[0.3, 0.3, 3.0, 3.0]]) * jax.random.normal(keys[1], (15, 4))
        return mk.Episode(mk.Examples(x[:6], y[:6], way=3), mk.Examples(x[6:], y[6:], way=3))

    loss = metagan.DiscriminatorLoss(offset=mk.learned(5.0))
    learner = against(prototypical, PROTOTYPICAL, loss=loss, num_fakes=9)
    outer = optax.multi_transform(
        {"discriminator": optax.adam(1e-2), "generator": optax.adam(1e-3, b1=0.5)}, metagan.players
    )

    def train(learner):
        state = mk.train.init(learner, outer, key=jax.random.key(8))
        return mk.train.run_steps(metagan, outer, state, tasks, num_steps=200, meta_batch=4)[0].learner

    def interval(learner):
        metrics = {"accuracy": mk.metrics.accuracy}
        scores = mk.evaluate.scores(metagan, learner, tasks, jax.random.key(9), num_tasks=500, metrics=metrics)
        return mk.evaluate.student_t(scores["accuracy"])

    trained = train(learner)
    played, alone = interval(trained), interval(train(metagan.without_generator(learner)))
    assert played.low > interval(learner).high
    assert played.high > alone.low
    found = mk.evaluate.scores_of(eqx.Partial(metagan.diagnostics, trained), tasks, jax.random.key(9), num_tasks=500)
    told_apart = mk.evaluate.student_t((found.real_accuracy + found.fake_accuracy) / 2)
    assert told_apart.low > 0.5


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: against(PROTOTYPICAL, prototypical), TypeError, r"algorithm must hold .*The algorithm comes first"),
        (lambda: against(maml, MAML, generator=3), TypeError, r"generator must be a network.*got int"),
        (lambda: against(maml, MAML, encoder=None), TypeError, r"encoder must be a network.*got NoneType"),
        (lambda: against(maml, MAML, loss=0.5), TypeError, r"loss must be an mk.metagan.DiscriminatorLoss, got float"),
        (lambda: against(maml, MAML, noise_size=0), ValueError, r"noise_size must be at least 1, got 0"),
        (lambda: against(matching, matching.Matching(lambda x: x)), ValueError, r"base is Matching.*no gradient"),
        (
            lambda: against(versa, versa.Versa(lambda x: x, amortiser=versa.Amortiser(4, key=KEY))),
            ValueError,
            r"base is Versa.*no gradient",
        ),
        (lambda: against(maml, MAML, num_fakes=-1), ValueError, r"num_fakes must be at least 0, got -1"),
        (
            lambda: against(prototypical, PROTOTYPICAL, adapt_to_fakes=True),
            ValueError,
            r"adapt_to_fakes=True needs a base learner .*got Prototypical.*is False",
        ),
        (
            lambda: metagan.DiscriminatorLoss(offset=jnp.ones(3)),
            ValueError,
            r"offset must be one number, got shape \[3\]",
        ),
        (
            lambda: metagan.DiscriminatorLoss()(jnp.zeros((1, 2)), jnp.zeros(1, int), reduction="max"),
            ValueError,
            r"reduction='max' is not known",
        ),
        (lambda: metagan.meta_loss(against(prototypical, PROTOTYPICAL), TASK), ValueError, r"needs a key"),
        (lambda: metagan.adapt(against(maml, MAML), TASK.support), ValueError, r"needs a key"),
        (
            lambda: metagan.generate(against(maml, MAML), TASK.support, KEY, num_fakes=0),
            ValueError,
            r"num_fakes must be at least 1, got 0",
        ),
        (
            lambda: metagan.adapt(against(maml, MAML, encoder=lambda x: x[:, :, None]), TASK.support, KEY),
            ValueError,
            r"encoder must map 6 examples to codes \[6, code\], got shape \[6, 4, 1\]",
        ),
        (
            lambda: metagan.adapt(against(maml, MAML, generator=lambda z: z), TASK.support, KEY),
            ValueError,
            r"generator must return examples like the support's, float64\[5, 4\], got float64\[5, 5\]",
        ),
        (
            lambda: metagan.adapt(against(maml, MAML), mk.Examples(TASK.support.x, TASK.support.y), KEY),
            ValueError,
            r"support\.way is missing",
        ),
    ],
)
def test_bad_input(make, error, message):
    """Catches mistakes that train to a wrong number in silence, or fail far from their cause."""
    with pytest.raises(error, match=message):
        make()


def test_float32_under_64_bits():
    """Catches noise, weights or marks of another dtype, which strict promotion refuses."""
    down = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree)
    networks = lambda l: (l.base.model, l.generator, l.encoder)
    learner = against(maml, MAML)
    learner = eqx.tree_at(
        networks, learner, tuple(map(lambda n: eqx.combine(down(eqx.filter(n, eqx.is_array)), n), networks(learner)))
    )
    assert eqx.filter_jit(metagan.meta_loss)(learner, down(TASK), KEY).dtype == jnp.float32
