"""Train a Neural Statistician on sets of images, and classify by the context that a single image suggests.

python examples/statistician.py runs/statistician                      # on Glyphs, which are built in
python examples/statistician.py runs/statistician --omniglot DIR       # docs/results.md: `metakit train statistician`

The same command continues a run that was stopped. No label enters the loss but as the set that an image belongs to.
"""

import argparse
import functools
import pathlib

import jax

import metakit as mk

SET_SIZE, META_BATCH = 5, 1
TEST = (5, 1, 15)  # way, shot, queries


def pools(omniglot: pathlib.Path | None) -> dict[str, mk.tasks.ImagePool]:
    if omniglot is None:
        return {part: mk.tasks.glyphs(part) for part in ("train", "val", "test")}
    load = functools.partial(mk.tasks.omniglot, omniglot, split="vinyals", rotations=True)
    return {part: load(part=part) for part in ("train", "val", "test")}


# Batch norm with the statistics of training sets: no test image then sees another.
freeze = jax.jit(mk.statistician.freeze_statistics)


def main(
    run: pathlib.Path,
    omniglot: pathlib.Path | None = None,
    steps: int = 1000,
    sets: int = 16,
    filters: int = 16,
    context_size: int = 128,
    sample_dropout: float = 0.5,
    rate: float = 2e-3,
    validate_every: int = 250,
    num_tasks: int = 1000,
    seed: int = 0,
) -> mk.evaluate.Interval:
    config = {name: value for name, value in locals().items() if name not in ("run", "omniglot", "num_tasks")}
    images = pools(omniglot)
    train = mk.tasks.Episodes(images["train"], sets, 1, SET_SIZE - 1)
    learner_key, train_key, sets_key = jax.random.split(jax.random.key(seed), 3)
    learner = mk.statistician.of_images(
        *images["train"].images.shape[2:4],
        context_size=context_size,
        filters=filters,
        sample_dropout=sample_dropout,
        key=learner_key,
    )
    optimiser = mk.train.adam(rate, schedule="cosine", num_steps=steps)
    state = mk.train.init(learner, optimiser, key=train_key, trainable=mk.trainable)
    sets_of_many = mk.tasks.Episodes(images["train"], min(200, len(images["train"].names)), 1, SET_SIZE - 1)(sets_key)

    def accuracy(learner: mk.statistician.Statistician, part: str, num_tasks: int) -> mk.evaluate.Interval:
        fixed, tasks = freeze(learner, sets_of_many, sets_key), mk.tasks.Episodes(images[part], *TEST)
        metrics = {"accuracy": mk.metrics.accuracy}
        scores = mk.evaluate.scores(
            mk.statistician, fixed, tasks, jax.random.key(seed + 1000), num_tasks=num_tasks, metrics=metrics
        )
        return mk.evaluate.student_t(scores["accuracy"])

    def say(event: mk.train.Event) -> None:
        if isinstance(event, mk.train.Validated):
            print(f"step {event.step}: validation accuracy {event.result}", flush=True)

    with mk.train.Checkpoints(run, config=config) as checkpoints:
        result = mk.train.fit(
            mk.statistician,
            optimiser,
            state,
            train,
            num_steps=steps,
            meta_batch=META_BATCH,
            validate=lambda learner: accuracy(learner, "val", min(200, num_tasks)),
            validate_every=validate_every,
            best="highest",
            anneal=functools.partial(mk.statistician.anneal_emphasis, halve_every=max(steps // 100, 1)),
            checkpoints=checkpoints,
            on_event=say,
        )
    reached = accuracy(result.best_learner, "test", num_tasks)
    print(f"5-way 1-shot accuracy on unseen classes: {reached}; trained on sets of {SET_SIZE}")
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="folder of the checkpoints")
    parser.add_argument("--omniglot", type=pathlib.Path, help="folder of Omniglot's two archives; Glyphs without it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sets", type=int, default=16, help="sets in one step")
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--context-size", type=int, default=128)
    parser.add_argument("--sample-dropout", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--num-tasks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
