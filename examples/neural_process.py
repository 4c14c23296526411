"""Train a neural process on Gaussian-process curves, score it against the exact posterior, and draw both.

python examples/neural_process.py curves.png                          # under a minute
python examples/neural_process.py curves.png --steps 20000            # the figure of docs/results.md
python examples/neural_process.py curves.png --attention uniform      # the plain conditional neural process
python examples/neural_process.py curves.png --latent                 # the attentive neural process

The plain one with Fourier features and a larger network, an hour of processor time with `--steps 200000`:
python examples/neural_process.py curves.png --attention uniform --features 8 --width 256 --decoder-depth 5
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import metakit as mk

STEPS, META_BATCH, CURVES = 500, 64, 3


def exact_posterior(tasks: mk.tasks.GaussianProcessCurves, min_scale: float) -> mk.MetaLearner:
    """The best there is as an algorithm: it is told the kernel, and bounded from below like the learner."""
    predict = functools.partial(mk.tasks.gp_posterior, mk.tasks.gp_kernel(tasks, jax.random.key(0)))
    return mk.MetaLearner(
        adapt=lambda learner, support, key=None: support,
        predict=lambda support, x, key=None: predict(support, x, min_scale=min_scale),
        meta_loss=lambda learner, task, key=None: jnp.zeros(()),
    )


def draw(path: pathlib.Path, tasks, learner, oracle, draws: int) -> None:
    """Mean and band of two standard deviations of the learner, and of the exact posterior, on unseen curves."""
    x = jnp.linspace(tasks.x[0], tasks.x[1], 200)[:, None]
    figure, axes = plt.subplots(1, CURVES, figsize=(4 * CURVES, 3), sharey=True, layout="constrained")
    for axis, key in zip(axes, jax.random.split(jax.random.key(3), CURVES), strict=True):
        episode = tasks(key)
        exact = oracle.predict(oracle.adapt(None, episode.support), x)
        for sign in (-2, 2):
            label = "exact posterior" if sign == 2 else None
            axis.plot(x[:, 0], (exact.mean + sign * exact.scale)[:, 0], "k--", linewidth=0.8, label=label)
        axis.plot(x[:, 0], exact.mean[:, 0], "k-", linewidth=0.8)
        adapted = mk.neural_process.adapt(learner, episode.support)
        for draw_key in jax.random.split(key, draws):
            prediction = mk.neural_process.predict(adapted, x, draw_key)
            low, high = (prediction.mean + sign * prediction.scale for sign in (-2, 2))
            axis.fill_between(x[:, 0], low[:, 0], high[:, 0], alpha=0.25 / draws, color="C0", linewidth=0)
            axis.plot(x[:, 0], prediction.mean[:, 0], "C0", label="neural process")
        mask = episode.support.mask
        axis.plot(episode.support.x[mask, 0], episode.support.y[mask, 0], "ko", markersize=4, label="support")
        axis.plot(episode.query.x[:, 0], episode.query.y[:, 0], "kx", markersize=4, label="query")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes[0].legend(unique.values(), unique.keys(), fontsize="x-small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(
    path: pathlib.Path,
    steps: int = STEPS,
    attention: str = "multihead",
    latent: bool = False,
    features: int = 0,
    width: int = 128,
    decoder_depth: int = 2,
    rate: float = 1e-3,
    seed: int = 0,
    num_tasks: int = 2000,
) -> dict[str, mk.evaluate.Interval]:
    tasks = mk.tasks.GaussianProcessCurves()
    learner_key, train_key = jax.random.split(jax.random.key(seed))
    learner = mk.neural_process.NeuralProcess(
        1,
        1,
        attention=attention,
        latent=latent,
        # Up to two and a half standard deviations of the kernel's spectrum.
        features=mk.nn.FourierFeatures(features, 2.5 / float(tasks.length_scale[0])) if features else None,
        width=width,
        decoder_depth=decoder_depth,
        key=learner_key,
    )
    optimiser = mk.train.adam(rate, schedule="cosine", num_steps=steps)
    state = mk.train.init(learner, optimiser, key=train_key)
    state, diagnostics = mk.train.run_steps(
        mk.neural_process, optimiser, state, tasks, num_steps=steps, meta_batch=META_BATCH
    )
    print(f"loss of the first and the last step: {diagnostics.loss[0]:.3f}, {diagnostics.loss[-1]:.3f} nats per target")

    oracle = exact_posterior(tasks, min_scale=float(learner.min_scale.value))
    metrics = {"log_density": mk.metrics.log_density}
    test = functools.partial(mk.evaluate.scores, num_tasks=num_tasks, metrics=metrics)
    # The same key: both are scored on the same curves.
    ours = test(mk.neural_process, state.learner, tasks, jax.random.key(1000))["log_density"]
    best = test(oracle, None, tasks, jax.random.key(1000))["log_density"]
    figures = {
        "learner": mk.evaluate.student_t(ours),
        "oracle": mk.evaluate.student_t(best),
        "oracle minus learner": mk.evaluate.paired_difference(best, ours),
    }
    for name, interval in figures.items():
        print(f"{name}: {interval} nats per new target")
    draw(path, tasks, state.learner, oracle, draws=5 if latent else 1)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, help="where to write the picture (PNG)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--attention", default="multihead", help="uniform, laplace, dot or multihead")
    parser.add_argument("--latent", action="store_true", help="add the latent path")
    parser.add_argument("--features", type=int, default=0, help="how many frequencies the networks see of an input")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--decoder-depth", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-tasks", type=int, default=2000)
    main(**vars(parser.parse_args()))
