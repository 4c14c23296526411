"""RL^2 on bandits: learn to explore. Ten pulls of five arms, against the best that any learner can do.

The optimum is exact (`mk.tasks.bandit_optimal_value`); pulling at random earns 5. The policy's memory is a GRU, or with
`python examples/bandits.py snail` causal convolutions and attention.
"""

import sys

import equinox as eqx
import jax

import metakit as mk

PULLS, ARMS = 10, 5
STEPS, META_BATCH, EPOCHS, RATE = 1000, 256, 3, {"gru": 1e-2, "snail": 3e-3}


def make_network(kind: str, key) -> mk.nn.SequenceModel:
    size = mk.rl_squared.token_size((1,), mk.Discrete(ARMS))
    if kind == "gru":
        return mk.nn.GRU(size, 64, key=key)
    length, keys = PULLS + 1, jax.random.split(key, 4)
    first = mk.nn.TemporalConvolution(size, 32, length=length, key=keys[0])
    second = mk.nn.CausalAttention(first.out_size, 32, 32, key=keys[1])
    third = mk.nn.TemporalConvolution(second.out_size, 32, length=length, key=keys[2])
    layers = [first, second, third, mk.nn.CausalAttention(third.out_size, 32, 32, key=keys[3])]
    return mk.nn.CausalSequence(layers, length=length)


def total_reward(learner, task, key):
    return mk.rl_squared.diagnostics(learner, task, key).returns.sum()


def score(learner, num_tasks: int) -> mk.evaluate.Interval:
    measure = eqx.Partial(total_reward, learner)
    rewards = mk.evaluate.scores_of(measure, mk.tasks.Bandits(ARMS), jax.random.key(2), num_tasks=num_tasks)
    return mk.evaluate.student_t(rewards)


def main(
    kind: str = "gru", steps: int = STEPS, num_tasks: int = 20_000
) -> tuple[mk.evaluate.Interval, mk.evaluate.Interval, float]:
    network_key, head_key = jax.random.split(jax.random.key(0))
    policy = mk.rl_squared.RecurrentPolicy(make_network(kind, network_key), (1,), mk.Discrete(ARMS), key=head_key)
    learner = mk.rl_squared.RLSquared(policy, num_episodes=PULLS, discount=1.0)  # a pull is an episode
    optimiser = mk.train.adam(RATE[kind], schedule="cosine", num_steps=EPOCHS * steps, clip_norm=1.0)
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(
        mk.rl_squared,
        optimiser,
        state,
        mk.tasks.Bandits(ARMS),
        num_steps=steps,
        meta_batch=META_BATCH,
        rule=mk.train.Epochs(EPOCHS),
    )
    return score(learner, num_tasks), score(state.learner, num_tasks), mk.tasks.bandit_optimal_value(PULLS, ARMS)


if __name__ == "__main__":
    untrained, trained, optimum = main(sys.argv[1] if len(sys.argv) > 1 else "gru")
    print(f"total reward of {PULLS} pulls of {ARMS} arms: optimum {optimum:.4f}")
    print(f"untrained    {untrained}")
    print(f"meta-trained {trained}")
