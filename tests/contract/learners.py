"""One row per learner; all of test_contract.py holds for every row. A new learner adds its row here."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

import metakit as mk
from metakit.learners import (
    maml,
    mann,
    matching,
    meta_lstm,
    metagan,
    neural_process,
    prototypical,
    relation,
    reptile,
    ridge,
    rl_maml,
    rl_squared,
    snail,
    statistician,
    versa,
)

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
import own_learner

sys.path.pop(0)


class Acting(NamedTuple):
    """How a task that is acted in, instead of read, is used.

    - `support(data)`: what `adapt` learns from, of what the algorithm's `collect` gives.
    - `x(data)`: what `predict` is asked about.
    - `score(learner, task, key)`: in place of a metric; higher is better.

    `collect` also says what the meta-gradient holds fixed: finite differences go over the loss of its data.
    """

    support: Callable[[Any], Any]
    x: Callable[[Any], Any]
    score: Callable[[Any, Any, Any], Any]


class Row(NamedTuple):
    """A learner under contract.

    - `make_learner(key)`, `make_task(key)`: as small as can be; the second is a sampler, pure and jittable.
    - `metric`: of one task, for "better with adaptation"; `None` for learners that act.
    - `without`: the learner with its adaptation switched off; `None` for learners whose adaptation has no off
      switch (metric learners), which must instead get better when trained.
    - `meta_gradient`: `None` where the gradient is exact; else `(learner, task, key) -> (leaves, expected)`, the
      identity that it satisfies instead.
    - `random`: whether the three functions need a key.
    - `training_steps`: how many "better when trained" takes: enough to be far above chance, not just above it.
    - `regresses`: of a classifier, whether it also takes real targets.
    - `acting`: `None` where tasks are episodes; else how the learner acts in its tasks.
    - `slow`: a configuration of a learner that other rows hold already, or minutes of compilation; only CI's slow
      run takes it.
    """

    name: str
    algorithm: Any
    make_learner: Callable[[Any], Any]
    make_task: Callable[[Any], Any]
    metric: Callable[..., Any] | None
    without: Callable[[Any], Any] | None = None
    meta_gradient: Callable[[Any, Any, Any], Any] | None = None
    random: bool = False
    training_steps: int = 300
    regresses: bool = False
    slow: bool = False
    acting: Acting | None = None


# Tasks

sinusoid = mk.tasks.Sinusoid(shot=5, queries=5)
curves = mk.tasks.GaussianProcessCurves(shot=(2, 5), queries=5)


def lopsided(key):
    """Bandits whose second arm is the better one, which a few hundred small steps are enough to learn."""
    return mk.tasks.Bandit(jax.random.uniform(key, (2,)) * 0.4 + jnp.array([0.0, 0.6]))


def clusters(key, way=3, shot=2, queries=3, loudness=3.0):
    """Classes differ in the first two of six features; the others are louder noise, which can be learnt."""
    mean_key, noise_key = jax.random.split(key)
    centres = jnp.pad(2.0 * jax.random.normal(mean_key, (way, 1, 2)), ((0, 0), (0, 0), (0, 4)))
    spread = jnp.asarray([0.3, 0.3, *4 * [loudness]])
    noise = spread[None, None] * jax.random.normal(noise_key, (way, shot + queries, 6))
    return _episode(centres + noise, shot)


def sequences(key, **options):
    """Clusters whose support comes in random order, for learners that read it as a sequence."""
    draw_key, order_key = jax.random.split(key)
    episode = clusters(draw_key, **options)
    order = jax.random.permutation(order_key, len(episode.support.x))
    support = mk.Examples(episode.support.x[order], episode.support.y[order], way=episode.support.way)
    return mk.Episode(support, episode.query)


def images(key, way=2, shot=1, queries=2):
    """Noisy copies of one random 8x8 image per class."""
    image_key, noise_key = jax.random.split(key)
    clean = jax.random.normal(image_key, (way, 1, 1, 8, 8))
    return _episode(clean + 0.5 * jax.random.normal(noise_key, (way, shot + queries, 1, 8, 8)), shot)


def _episode(x, shot):
    way, count = x.shape[:2]
    labels = jnp.broadcast_to(jnp.arange(way, dtype=jnp.int32)[:, None], (way, count))

    def examples(part):
        return mk.Examples(x[:, part].reshape(-1, *x.shape[2:]), labels[:, part].reshape(-1), way=way)

    return mk.Episode(examples(slice(None, shot)), examples(slice(shot, None)))


# Learners


def regressor(configuration, **options):
    """Of sinusoids; tanh because finite differences want a smooth function."""

    def make(key):
        model = mk.nn.MLP(1, 1, 8, 1, jnp.tanh, key=key)
        return configuration(model, loss=mk.losses.squared_error, **options)

    return make


class SmallConvNet(eqx.Module):
    """Two blocks of the four-block network: its second derivative takes a tenth of the time to compile."""

    blocks: list[Any]
    head: mk.nn.Linear

    def __init__(self, norm, key):
        first, second, last = jax.random.split(key, 3)
        self.blocks = [(mk.nn.Conv2d(i, 3, 3, key=k), norm(3)) for i, k in ((1, first), (3, second))]
        self.head = mk.nn.Linear(12, 2, key=last)

    def __call__(self, x):
        for convolution, norm in self.blocks:
            x = mk.nn.max_pool2d(jax.nn.relu(norm(convolution(x))))
        return self.head(x.reshape(x.shape[0], -1))


def image_classifier(configuration, norm=mk.nn.BatchStatNorm, **options):
    return lambda key: configuration(SmallConvNet(norm, key), **options)


def metric_learner(kind, in_size, **options):
    def make(key):
        return kind(mk.nn.MLP(in_size, 4, 8, 1, jnp.tanh, key=key), **options)

    return make


def full_context(key):
    embed_key, context_key = jax.random.split(key)
    context = matching.FullContext(4, num_steps=2, key=context_key)
    embed = mk.nn.MLP(6, 4, 8, 1, jnp.tanh, key=embed_key)
    return matching.Matching(embed, scale=mk.learned(5.0), context=context)


def small_snail(key, **options):
    """One block of each kind; room for two shots of three classes and the query."""
    keys = jax.random.split(key, 4)
    embed = mk.nn.MLP(6, 4, 8, 1, jnp.tanh, key=keys[0])
    convolutions = mk.nn.TemporalConvolution(7, 4, length=7, key=keys[1])
    attention = mk.nn.CausalAttention(convolutions.out_size, 4, 4, key=keys[2])
    trunk = mk.nn.CausalSequence([convolutions, attention], length=7)
    return snail.SNAIL(embed, trunk, mk.nn.Linear(trunk.out_size, 3, key=keys[3]), **options)


def small_mann(key):
    return mann.MANN(6, 3, hidden=8, slots=8, width=4, heads=2, key=key)


class SmallMaps(eqx.Module):
    """One block of feature maps, for 4x4 ones out of 8x8 images."""

    conv: mk.nn.Conv2d
    norm: mk.nn.BatchStatNorm

    def __init__(self, key):
        self.conv, self.norm = mk.nn.Conv2d(1, 3, 3, key=key), mk.nn.BatchStatNorm(3)

    def __call__(self, x):
        return mk.nn.max_pool2d(jax.nn.relu(self.norm(self.conv(x))))


def relation_network(key):
    embed_key, relation_key = jax.random.split(key)
    module = mk.nn.RelationModule(3, 4, width=4, key=relation_key)
    return relation.Relation(SmallMaps(embed_key), module)


def versa_classifier(key):
    embed_key, head_key = jax.random.split(key)
    embed = mk.nn.MLP(6, 4, 8, 1, jnp.tanh, key=embed_key)
    return versa.Versa(embed, versa.Amortiser(4, key=head_key), num_samples=4)


def neural(**options):
    """A neural process of curves."""

    def make(key):
        return neural_process.NeuralProcess(
            1, 1, width=8, latent_size=3, encoder_depth=1, decoder_depth=1, num_heads=2, key=key, **options
        )

    return make


def users_ridge(key):
    embed = mk.nn.MLP(6, 4, 8, 1, jnp.tanh, key=key)
    return own_learner.Ridge(embed, penalty=mk.learned(1.0), scale=mk.learned(5.0))


def policy_gradient(key):
    policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=key))
    # With a baseline or standardised advantages the loss is zero but for rounding, whatever the policy.
    options = {"num_episodes": 10, "baseline": "none", "standardise": False}
    return rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0), **options)


def recurrent(key):
    policy = mk.rl_squared.gru_policy((1,), mk.Discrete(2), 4, key=key)
    return rl_squared.RLSquared(policy, num_episodes=4)


def return_after(learner, task, key):
    return rl_maml.returns(learner, task, key)[-1]


def trial_return(learner, task, key):
    return jnp.sum(rl_squared.diagnostics(learner, task, key).returns)


def first_order(learner, task, key):
    """First-order MAML's gradient is the query loss's own gradient, taken at the adapted weights."""
    del key

    def query_loss(model):
        return mk.losses.squared_error(model(task.query.x), task.query.y, reduction="mean")

    adapted = maml.adapt(learner, task.support)
    return lambda tree: tree.model, eqx.filter_grad(query_loss)(adapted.model)


def towards_the_solution(learner, task, key):
    """Reptile's gradient is what adaptation moved the weights by, the other way."""
    adapted = reptile.adapt(learner, task.support, key)
    return lambda tree: tree.model, jax.tree.map(jnp.subtract, learner.model, adapted.model)


def learned_update(key, **options):
    """Rates of 0.05 from the start, for adaptation to help before any training."""
    model = mk.nn.MLP(1, 1, 8, 1, jnp.tanh, key=key)
    update = meta_lstm.LearnedUpdate(3, forget_bias=(8.0, 8.0), input_bias=(-3.0, -3.0), key=jax.random.fold_in(key, 1))
    return meta_lstm.MetaLSTM(model, update=update, num_steps=3, loss=mk.losses.squared_error, **options)


def against_a_generator(algorithm, make_base, **options):
    def make(key):
        keys = jax.random.split(key, 3)
        return metagan.MetaGAN(
            algorithm,
            make_base(keys[0]),
            generator=mk.nn.MLP(2 + 3, 6, 8, 1, jnp.tanh, key=keys[1]),
            encoder=mk.nn.MLP(6, 3, 8, 1, jnp.tanh, key=keys[2]),
            noise_size=2,
            num_fakes=4,
            **options,
        )

    return make


def classifier(key):
    model = mk.nn.MLP(6, 3, 8, 1, jnp.tanh, key=key)
    return maml.MAML(model, inner=mk.inner.SGD(0.1), num_steps=1)


def each_players_own(learner, task, key):
    """MetaGAN's gradient is each player's loss's own gradient with respect to that player."""

    def gradient(of):
        return eqx.filter_grad(lambda moved: getattr(metagan.diagnostics(moved, task, key), of))(learner)

    players = eqx.filter(metagan.players(learner), jax.tree.map(eqx.is_inexact_array, learner))
    expected = jax.tree.map(
        lambda player, of_discriminator, of_generator: of_generator if player == "generator" else of_discriminator,
        players,
        gradient("discriminator_loss"),
        gradient("generator_loss"),
    )
    return lambda tree: tree, expected


def several(make_member):
    return lambda key: mk.Ensemble([make_member(key) for key in jax.random.split(key)])


def at_temperature(make_base):
    return lambda key: mk.Tempered(make_base(key), mk.learned(1.5))


no_steps = functools.partial(maml.with_num_steps, num_steps=0)
no_updates = functools.partial(rl_maml.with_num_steps, num_steps=0)
bandits = mk.tasks.Bandits(2)
sgd = mk.inner.SGD(0.05)
error, accuracy, density = mk.metrics.mean_squared_error, mk.metrics.accuracy, mk.metrics.log_density

ROWS = [
    Row("maml", maml, regressor(maml.MAML, inner=sgd, num_steps=3), sinusoid, error, no_steps),
    Row(
        "maml_images",
        maml,
        image_classifier(maml.MAML, inner=mk.inner.SGD(0.4), num_steps=2, reduction="sum/shot"),
        images,
        accuracy,
        no_steps,
        slow=True,
    ),
    Row("fomaml", maml, regressor(maml.fomaml, inner=sgd, num_steps=3), sinusoid, error, no_steps, first_order),
    Row(
        "imaml",
        maml,
        regressor(
            maml.imaml,
            inner=mk.inner.SGD(0.02),
            num_steps=800,  # converged, so that differences agree with the implicit gradient
            linear_solver=lx.CG(rtol=1e-12, atol=1e-12, max_steps=100),
        ),
        sinusoid,
        error,
        no_steps,
        slow=True,
    ),
    Row("anil", maml, regressor(maml.anil, inner=sgd, num_steps=3), sinusoid, error, no_steps, slow=True),
    Row("boil", maml, regressor(maml.boil, inner=sgd, num_steps=3), sinusoid, error, no_steps, slow=True),
    Row("meta_sgd", maml, regressor(maml.meta_sgd, rate=0.05, num_steps=3), sinusoid, error, no_steps, slow=True),
    Row(
        "mamlpp",
        maml,
        image_classifier(
            maml.mamlpp,
            functools.partial(mk.nn.PerStepNorm, 2),
            rate=0.4,
            num_steps=2,
            norm_policy="inductive",
        ),
        images,
        accuracy,
        no_steps,
        slow=True,
    ),
    Row(
        "matching",
        matching,
        metric_learner(matching.Matching, 6, scale=mk.learned(5.0)),
        clusters,
        accuracy,
        regresses=True,
    ),
    Row(
        "matching_regression",
        matching,
        metric_learner(matching.Matching, 1, scale=mk.learned(5.0)),
        sinusoid,
        error,
        slow=True,
    ),
    Row("matching_full_context", matching, full_context, clusters, accuracy, regresses=True, slow=True),
    Row("prototypical", prototypical, metric_learner(prototypical.Prototypical, 6), clusters, accuracy),
    Row("snail", snail, small_snail, sequences, accuracy),
    Row(
        "snail_random_shot",
        snail,
        functools.partial(small_snail, norm_policy="transductive", random_shot=True),
        sequences,
        accuracy,
        random=True,
        slow=True,
    ),
    # Loud noise would keep a memory at chance for a thousand steps before it learns what to look for.
    Row("mann", mann, small_mann, functools.partial(sequences, loudness=0.3), accuracy, training_steps=1500),
    Row(
        "reptile",
        reptile,
        regressor(reptile.Reptile, inner=sgd, num_steps=4, batch_size=3),
        sinusoid,
        error,
        functools.partial(reptile.with_num_steps, num_steps=0),
        towards_the_solution,
        random=True,
    ),
    Row(
        "meta_lstm",
        meta_lstm,
        functools.partial(learned_update, second_order=True),
        sinusoid,
        error,
        functools.partial(meta_lstm.with_num_steps, num_steps=0),
    ),
    Row(
        "metagan_prototypical",
        metagan,
        against_a_generator(
            prototypical,
            metric_learner(prototypical.Prototypical, 6, norm_policy="transductive"),
            adapt_to_fakes=False,
            loss=metagan.DiscriminatorLoss(offset=mk.learned(5.0)),
        ),
        clusters,
        accuracy,
        meta_gradient=each_players_own,
        random=True,
    ),
    Row(
        "metagan_maml",
        metagan,
        against_a_generator(maml, classifier, adapt_to_fakes=True),
        clusters,
        accuracy,
        meta_gradient=each_players_own,
        random=True,
        slow=True,
    ),
    Row("relation", relation, relation_network, images, accuracy),
    Row(
        "ridge",
        ridge,
        metric_learner(ridge.Ridge, 6, penalty=mk.learned(1.0), scale=mk.learned(5.0), bias=mk.learned(0.0)),
        clusters,
        accuracy,
        regresses=True,
    ),
    Row("ridge_regression", ridge, metric_learner(ridge.Ridge, 1, penalty=mk.learned(0.1)), sinusoid, error, slow=True),
    Row(
        "lrd2",
        ridge,
        metric_learner(ridge.lrd2, 6, penalty=mk.learned(1.0), scale=mk.learned(5.0), num_steps=3),
        clusters,
        accuracy,
        slow=True,
    ),
    Row("versa", versa, versa_classifier, clusters, accuracy, random=True),
    Row("conditional_neural_process", neural_process, neural(), curves, density),
    Row(
        "attentive_neural_process",
        neural_process,
        neural(latent=True, attention="multihead"),
        curves,
        density,
        random=True,
        slow=True,
    ),
    Row(
        "statistician",
        statistician,
        lambda key: statistician.of_vectors(6, context_size=2, latent_size=2, width=8, depth=1, key=key),
        clusters,
        accuracy,
        random=True,
        slow=True,
    ),
    Row(
        "rl_maml",
        rl_maml,
        policy_gradient,
        bandits,
        None,
        no_updates,
        random=True,
        slow=True,
        acting=Acting(lambda data: data.support, lambda data: data.query.observations[:, 0], return_after),
    ),
    Row(
        "rl_squared",
        rl_squared,
        recurrent,
        lopsided,
        None,
        random=True,
        slow=True,
        acting=Acting(lambda data: data.trajectories, lambda data: data.trajectories.observations[:, 0], trial_return),
    ),
    Row("ensemble", mk.ensemble(maml), several(regressor(maml.MAML, inner=sgd, num_steps=3)), sinusoid, error),
    Row(
        "ensemble_random",
        mk.ensemble(versa),
        several(versa_classifier),
        clusters,
        accuracy,
        random=True,
        slow=True,
    ),
    Row(
        "tempered",
        mk.tempered(prototypical),
        at_temperature(metric_learner(prototypical.Prototypical, 6)),
        clusters,
        accuracy,
    ),
    Row("tempered_density", mk.tempered(neural_process), at_temperature(neural()), curves, density, slow=True),
    Row(
        "tempered_ensemble",
        mk.tempered(mk.ensemble(maml)),
        at_temperature(several(classifier)),
        clusters,
        accuracy,
        slow=True,
    ),
    Row("own_learner", own_learner, users_ridge, clusters, accuracy),
]
