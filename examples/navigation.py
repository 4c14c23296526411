"""MAML on policy gradients: walk to a goal in the plane that only the rewards tell of.

Three policies, each adapted to unseen goals with up to three policy-gradient steps on twenty episodes of its own: one
meta-trained with trust region steps; one trained with the same steps to do well on all goals *before* any adaptation,
so without meta-learning; and one not trained. The return is the sum of negative distances over a hundred steps.

    python examples/navigation.py [picture.png]
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import metakit as mk

STEPS, META_BATCH, UPDATES = 100, 20, 3
RATES = (0.5, 0.25, 0.125)  # halved with each update: near a goal a policy gradient is mostly noise
GOALS = mk.tasks.Navigations()


def make_learner(key) -> mk.rl_maml.RLMAML:
    network = mk.nn.MLP(2, 2, 64, 2, jnp.tanh, weight_init=mk.nn.xavier_uniform, key=key)
    policy = mk.rl.GaussianPolicy(network, 2)
    weights = eqx.filter(policy, eqx.is_inexact_array)
    inner = mk.inner.PerLayerPerStepSGD(jax.tree.map(lambda _: mk.fixed(jnp.array(RATES)), weights))
    return mk.rl_maml.RLMAML(policy, inner=inner)


def returns(learner, num_tasks: int) -> list[mk.evaluate.Interval]:
    """After 0, 1, 2 and 3 updates."""
    measure = eqx.Partial(mk.rl_maml.returns, mk.rl_maml.with_num_steps(learner, UPDATES))
    scores = mk.evaluate.scores_of(measure, GOALS, jax.random.key(2), num_tasks=num_tasks, chunk=20)
    return [mk.evaluate.student_t(by_task) for by_task in np.asarray(scores).T]


def train(learner, steps: int, every: int, num_tasks: int) -> tuple[Any, list[tuple[int, list[mk.evaluate.Interval]]]]:
    """The learner after trust region steps, and its returns on the way."""
    optimiser = optax.identity()  # a trust region step needs none
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    curve = [(0, returns(learner, num_tasks))]
    while int(state.step) < steps:
        state, _ = mk.train.run_steps(
            mk.rl_maml,
            optimiser,
            state,
            GOALS,
            num_steps=min(every, steps),
            meta_batch=META_BATCH,
            rule=mk.train.TrustRegion(0.01),
        )
        curve.append((int(state.step), returns(state.learner, num_tasks)))
        print(f"step {curve[-1][0]}: {', '.join(f'{interval.mean:.2f}' for interval in curve[-1][1])}", flush=True)
    return state.learner, curve


def main(
    steps: int = STEPS, num_tasks: int = 400, every: int = 10
) -> tuple[dict[str, list[mk.evaluate.Interval]], Any, Any]:
    untrained = make_learner(jax.random.key(0))
    jointly, _ = train(mk.rl_maml.with_num_steps(untrained, 0), steps, every, num_tasks=40)
    meta_trained, curve = train(untrained, steps, every, num_tasks=40)
    learners = {"not trained": untrained, "trained without meta-learning": jointly, "meta-trained": meta_trained}
    return {name: returns(learner, num_tasks) for name, learner in learners.items()}, meta_trained, curve


def draw(learner, curve, path: str) -> None:
    """The learning curve, and walks to three goals before and after three updates."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for update in range(UPDATES + 1):
        by_step = [intervals[update] for _, intervals in curve]
        steps, colour = [step for step, _ in curve], plt.get_cmap("viridis")(0.85 - 0.25 * update)
        left.plot(steps, [x.mean for x in by_step], color=colour, marker="o", markersize=3, label=f"{update} updates")
        left.fill_between(steps, [x.low for x in by_step], [x.high for x in by_step], color=colour, alpha=0.2)
    left.set(xlabel="trust region step", ylabel="return (40 goals, 95 % interval)")
    left.legend(frameon=False)
    learner = mk.rl_maml.with_num_steps(learner, UPDATES)
    collect = jax.jit(mk.rl_maml.collect)
    for colour, goal in zip(("#0072B2", "#E69F00", "#009E73"), ([0.4, 0.3], [-0.4, 0.2], [0.1, -0.45]), strict=True):
        data = collect(learner, mk.tasks.Navigation(goal), jax.random.key(3))
        for episodes, style in ((data.support[0], ":"), (data.query, "-")):
            for observations, mask in zip(episodes.observations[:3], episodes.mask[:3], strict=True):
                right.plot(*np.asarray(observations)[np.asarray(mask)].T, style, color=colour, linewidth=1)
        right.plot(*goal, "*", color=colour, markersize=13, markeredgecolor="black")
    right.set(xlabel="before adaptation (dotted), after 3 updates (solid)", aspect="equal")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    found, meta_trained, curve = main()
    for name, by_update in found.items():
        print(name)
        for update, interval in enumerate(by_update):
            print(f"  after {update} updates {interval}")
    if len(sys.argv) > 1:
        draw(meta_trained, curve, sys.argv[1])
