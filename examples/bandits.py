"""RL^2 on bandits: learn to explore. Ten pulls of five arms, against the best that any learner can do.

The optimum is exact (`mk.tasks.bandit_optimal_value`); pulling at random earns 5.
"""

import equinox as eqx
import jax

import metakit as mk

PULLS, ARMS = 10, 5
STEPS, META_BATCH, EPOCHS = 1000, 256, 3


def total_reward(learner, task, key):
    return mk.rl_squared.diagnostics(learner, task, key).returns.sum()


def score(learner, num_tasks: int) -> mk.evaluate.Interval:
    bandits = mk.tasks.Bandits(ARMS)
    rewards = mk.evaluate.scores_of(eqx.Partial(total_reward, learner), bandits, jax.random.key(2), num_tasks=num_tasks)
    return mk.evaluate.student_t(rewards)


def main(steps: int = STEPS, num_tasks: int = 20_000) -> tuple[mk.evaluate.Interval, mk.evaluate.Interval, float]:
    bandits = mk.tasks.Bandits(ARMS)
    policy = mk.rl_squared.gru_policy((1,), mk.Discrete(ARMS), 64, key=jax.random.key(0))
    learner = mk.rl_squared.RLSquared(policy, num_episodes=PULLS, discount=1.0)  # a pull is an episode
    optimiser = mk.train.adam(1e-2, schedule="cosine", num_steps=EPOCHS * steps, clip_norm=1.0)
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(
        mk.rl_squared,
        optimiser,
        state,
        bandits,
        num_steps=steps,
        meta_batch=META_BATCH,
        rule=mk.train.Epochs(EPOCHS),
    )
    return score(learner, num_tasks), score(state.learner, num_tasks), mk.tasks.bandit_optimal_value(PULLS, ARMS)


if __name__ == "__main__":
    untrained, trained, optimum = main()
    print(f"total reward of {PULLS} pulls of {ARMS} arms: optimum {optimum:.4f}")
    print(f"untrained    {untrained}")
    print(f"meta-trained {trained}")
