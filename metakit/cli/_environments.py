"""What a task to act in is to the command line: how it is drawn, scored and drawn as a picture."""

import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import evaluate, tasks
from metakit.learners import rl_maml, rl_squared

from . import _pictures
from ._config import Settings
from ._forms import AbstractForm, Sampler, Series

PULLS, ARMS = 10, 5


class Bandits(AbstractForm):
    """Pulls of arms that pay with unknown probabilities; each pull is an episode."""

    score, score_in_words, is_share, best = "reward", "total reward", False, "highest"

    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        del settings, training
        assert pool is None
        return tasks.Bandits(ARMS)

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        diagnose = eqx.Partial(rl_squared.diagnostics, learner)
        by_pull = evaluate.scores_of(diagnose, sampler, key, num_tasks=num_tasks).returns
        return {"reward": jnp.sum(by_pull, axis=1), "pull": by_pull}

    def in_words(self, settings: Settings) -> str:
        del settings
        optimum = tasks.bandit_optimal_value(PULLS, ARMS)
        return f"{PULLS} pulls of {ARMS} arms (of {optimum:.4f} that any learner can earn, at random {PULLS / 2:g})"

    def series(self, scores: dict[str, Any]) -> list[Series]:
        return [Series("pull", 1, [evaluate.student_t(column) for column in jnp.moveaxis(scores["pull"], 1, 0)])]

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        del settings, algorithm, learner, test, key, folder
        return []


class Navigation(AbstractForm):
    """Walks in the plane to goals that only the rewards tell of."""

    score, score_in_words, is_share, best = "return", "return after the last update", False, "highest"

    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        del settings, training
        assert pool is None
        return tasks.Navigations()

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        measure = eqx.Partial(rl_maml.returns, learner)
        # A goal's episodes are a few thousand steps: many goals at once would be for nothing.
        by_update = evaluate.scores_of(measure, sampler, key, num_tasks=num_tasks, chunk=min(num_tasks, 20))
        return {"return": by_update[:, -1], "update": by_update}

    def in_words(self, settings: Settings) -> str:
        return f"{settings.test_inner_steps} updates on new episodes each"

    def series(self, scores: dict[str, Any]) -> list[Series]:
        return [Series("update", 0, [evaluate.student_t(column) for column in jnp.moveaxis(scores["update"], 1, 0)])]

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        del settings, algorithm
        collect, walks = eqx.filter_jit(rl_maml.collect), []
        for i in range(3):
            task = test(jax.random.fold_in(key, i))
            data = collect(learner, task, jax.random.fold_in(key, 3 + i))
            before, after = data.support[0] if data.support else data.query, data.query
            walks.append({"goal": np.asarray(task.goal), "before": _paths(before), "after": _paths(after)})
        _pictures.walks(walks, folder / "walks.png")
        return [("Walks to three goals, before and after adaptation", "walks.png")]


def _paths(episodes: Any, *, most: int = 3) -> list[np.ndarray]:
    """The positions of a few episodes, `[steps, 2]` each."""
    pairs = zip(episodes.observations[:most], episodes.mask[:most], strict=True)
    return [np.asarray(positions)[np.asarray(mask)] for positions, mask in pairs]


BANDITS = Bandits()
NAVIGATION = Navigation()
