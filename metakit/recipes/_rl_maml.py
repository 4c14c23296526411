"""MAML on policy gradients."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metakit import evaluate, nn, rl, tasks, train
from metakit._hyperparameter import fixed
from metakit.experiments import AbstractScores, Experiment, Series, Shown, Words, plots
from metakit.inner import PerLayerPerStepSGD
from metakit.learners import rl_maml as learner_of

from .parts import NO_NORM, Budget, InnerLoop, recipe, with_test_steps

ABOUT = "MAML on policy gradients, trust region steps (Finn et al. 2017)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Navigation:
    """Walks in the plane to goals that only the rewards tell of."""

    data: Literal["navigation"] = "navigation"


@dataclasses.dataclass(frozen=True)
class Returns(AbstractScores):
    """The return after the last update, and after each of them."""

    name = "return"
    in_words = "return after the last update"
    best = "highest"
    is_share = False

    def of(self, algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        measure = eqx.Partial(learner_of.returns, learner)
        # A goal's episodes are a few thousand steps: many goals at once would be for nothing.
        by_update = evaluate.scores_of(measure, sampler, key, num_tasks=num_tasks, chunk=min(num_tasks, 20))
        return {"return": by_update[:, -1], "update": by_update}

    def series(self, scores: dict[str, Any]) -> list[Series]:
        return [Series("update", 0, [evaluate.student_t(column) for column in jnp.moveaxis(scores["update"], 1, 0)])]


@recipe(ABOUT)
def rl_maml(
    data: Navigation = Navigation(),
    inner: InnerLoop = InnerLoop(inner_rate=0.5, inner_steps=1, test_inner_steps=3),
    budget: Budget = Budget(steps=100, meta_batch=20, validate_every=10, validation_tasks=40, test_tasks=400),
) -> Experiment:
    """MAML on policy gradients: the start of a policy that a few policy gradients adapt.

    The published policy, of 2-D navigation. Updates beyond those of training go half as far each as the one before
    (published: half as far, all of them): near a goal a policy gradient is mostly noise."""
    network = nn.MLP(2, 2, 64, 2, jnp.tanh, weight_init=nn.xavier_uniform, key=jax.random.key(budget.seed))
    policy = rl.GaussianPolicy(network, 2)
    trained = max(inner.inner_steps, 1)
    rates = [inner.inner_rate * 0.5 ** max(step - trained + 1, 0) for step in range(max(trained, inner.in_test))]
    rule = PerLayerPerStepSGD(jax.tree.map(lambda _: fixed(jnp.array(rates)), eqx.filter(policy, eqx.is_inexact_array)))
    words = f"{inner.in_test} updates on new episodes each"
    about = "walks to a goal drawn uniformly from a square of side 1"
    return Experiment(
        learner_of,
        learner_of.RLMAML(policy, inner=rule, num_steps=inner.inner_steps),
        optax.identity(),  # a trust region step needs no optimiser
        train=tasks.Navigations(),
        val=tasks.Navigations(),
        test=tasks.Navigations(),
        scores=Returns(),
        rule=train.TrustRegion(0.01),
        as_tested=with_test_steps(learner_of.with_num_steps, inner),
        baselines={},
        pictures=(walks,),
        words=Words(f"{ABOUT} on {data.data}", about, words, NO_NORM, (inner.in_words,)),
        **budget.of_experiment,
    )


def walks(shown: Shown) -> list[tuple[str, str]]:
    """Walks to three goals, before and after adaptation."""
    collect, drawn = eqx.filter_jit(learner_of.collect), []
    for i in range(3):
        task = shown.sampler(jax.random.fold_in(shown.key, i))
        data = collect(shown.learner, task, jax.random.fold_in(shown.key, 3 + i))
        before, after = data.support[0] if data.support else data.query, data.query
        drawn.append({"goal": np.asarray(task.goal), "before": _paths(before), "after": _paths(after)})
    plots.walks(drawn, shown.folder / "walks.png")
    return [("Walks to three goals, before and after adaptation", "walks.png")]


def _paths(episodes: Any, *, most: int = 3) -> list[np.ndarray]:
    """The positions of a few episodes, `[steps, 2]` each."""
    pairs = zip(episodes.observations[:most], episodes.mask[:most], strict=True)
    return [np.asarray(positions)[np.asarray(mask)] for positions, mask in pairs]
