"""Meta-SGD's smallest case: learn one inner rate on random lines, and compare it with the closed form.

For lines y = a x + b with a, b ~ N(0, 1), x uniform in [-1, 1] and K support points, the inner rate that minimises the
risk after one step from the best initialisation (zero) is known exactly: `mk.tasks.linear_one_step_rate`.
"""

import jax
import optax

import metakit as mk

STEPS, META_BATCH = 3000, 256


def main(steps: int = STEPS) -> tuple[float, float]:
    tasks = mk.tasks.LinearRegression(shot=5, queries=20)
    line = mk.nn.Linear(1, 1, weight_init=mk.nn.zeros, key=jax.random.key(0))
    inner = mk.inner.SGD(mk.learned(0.2))
    learner = mk.maml.MAML(line, inner=inner, num_steps=1, loss=mk.losses.squared_error)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(mk.maml, optimiser, state, tasks, num_steps=steps, meta_batch=META_BATCH)
    return float(state.learner.inner.rate.value), float(mk.tasks.linear_one_step_rate(tasks))


if __name__ == "__main__":
    rate, optimum = main()
    print(f"learned inner rate {rate:.4f}, closed form {optimum:.4f}, {100 * (rate / optimum - 1):+.2f} %")
