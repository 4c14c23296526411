"""MAML on policy gradients: walk to a goal in the plane that only the rewards tell of.

A policy meta-trained with trust region steps, and one that was not, each adapted to unseen goals with up to three
policy-gradient steps on twenty episodes of its own. The return is the sum of negative distances over a hundred steps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metakit as mk

STEPS, META_BATCH, UPDATES = 100, 20, 3
RATES = (0.1, 0.05, 0.05)  # smaller after the first update, as published


def make_learner(key) -> mk.rl_maml.RLMAML:
    network = mk.nn.MLP(2, 2, 64, 2, jnp.tanh, weight_init=mk.nn.xavier_uniform, key=key)
    policy = mk.rl.GaussianPolicy(network, 2)
    weights = eqx.filter(policy, eqx.is_inexact_array)
    inner = mk.inner.PerLayerPerStepSGD(jax.tree.map(lambda _: mk.fixed(jnp.array(RATES)), weights))
    return mk.rl_maml.RLMAML(policy, inner=inner)


def returns(learner, num_tasks: int) -> list[mk.evaluate.Interval]:
    measure = eqx.Partial(mk.rl_maml.returns, mk.rl_maml.with_num_steps(learner, UPDATES))
    scores = mk.evaluate.scores_of(measure, mk.tasks.Navigations(), jax.random.key(2), num_tasks=num_tasks, chunk=20)
    return [mk.evaluate.student_t(by_task) for by_task in np.asarray(scores).T]


def main(steps: int = STEPS, num_tasks: int = 400) -> dict[str, list[mk.evaluate.Interval]]:
    learner = make_learner(jax.random.key(0))
    optimiser = optax.identity()  # a trust region step needs none
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(
        mk.rl_maml,
        optimiser,
        state,
        mk.tasks.Navigations(),
        num_steps=steps,
        meta_batch=META_BATCH,
        rule=mk.train.TrustRegion(0.01),
    )
    return {"not meta-trained": returns(learner, num_tasks), "meta-trained": returns(state.learner, num_tasks)}


if __name__ == "__main__":
    for name, by_update in main().items():
        print(name)
        for update, interval in enumerate(by_update):
            print(f"  after {update} updates {interval}")
