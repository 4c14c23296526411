"""A memory-augmented network."""

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import evaluate, tasks as families
from metakit.experiments import AbstractScores, Experiment, Series
from metakit.learners import mann as learner_of

from .parts import (
    IMAGES,
    MORE_TASKS,
    NO_NORM,
    Adam,
    Budget,
    Folder,
    Glyphs,
    InTest,
    Omniglot,
    recipe,
    require_least,
)

ABOUT = "a memory-augmented network (Santoro et al. 2016)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
    """The sequences."""

    OF = IMAGES
    way: int = 5
    """Classes in a sequence; the network has an output for each."""
    shot: int = 10
    """Images of each class in a training sequence."""
    test_shot: Annotated[int | None, InTest("shot")] = None
    """Images of each class in a test sequence; by default as in training."""

    def __post_init__(self):
        require_least({"way": 2, "shot": 1, "test_shot": 1}, vars(self))

    @property
    def of_training(self) -> tuple[int, int]:
        """Way and presentations of training."""
        return self.way, self.shot

    @property
    def of_test(self) -> tuple[int, int]:
        """Way and presentations of the test."""
        return self.way, self.shot if self.test_shot is None else self.test_shot

    @property
    def in_words(self) -> str:
        """A test task."""
        way, shot = self.of_test
        return f"sequences of {way * shot} images, {shot} of each of {way} classes"


@dataclasses.dataclass(frozen=True)
class SequenceScores(AbstractScores):
    """Accuracy over a sequence, and by how often a class had been presented."""

    name = "accuracy"
    in_words = "accuracy over the whole sequence"
    best = "highest"
    is_share = True

    def of(self, algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        diagnose = eqx.Partial(learner_of.diagnostics, learner)
        found = evaluate.scores_of(diagnose, sampler, key, num_tasks=num_tasks, chunk=min(num_tasks, 32))
        return {"accuracy": jnp.mean(found.correct, axis=1), "presentation": found.accuracy}

    def series(self, scores: dict[str, Any]) -> list[Series]:
        by_presentation = jnp.moveaxis(scores["presentation"], 1, 0)
        return [Series("presentation", 1, [evaluate.student_t(column) for column in by_presentation])]


@recipe(ABOUT, omniglot={"steps": 60_000, "schedule": "cooldown", "validate_every": 2000, **MORE_TASKS})
def mann(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: Sequences = Sequences(),
    outer: Adam = Adam(rate=1e-3),
    budget: Budget = Budget(steps=2000, meta_batch=16, validate_every=500),
) -> Experiment:
    """A memory-augmented network: it reads a sequence of images and asks itself for each of them."""
    # As published for networks without convolutions.
    parts = data.load(tasks, seed=budget.seed, size=20 if data.data == "omniglot" else 28)
    channels, size = parts.shape
    # As published for Omniglot, in training only; glyphs come distorted.
    moved = families.TurnAndShift() if data.data == "omniglot" else None
    return Experiment(
        learner_of,
        learner_of.MANN(channels * size**2, tasks.way, key=jax.random.key(budget.seed)),
        outer.optimiser(budget.steps),
        train=parts.sequences("train", tasks.of_training, augment_class=moved),
        val=parts.sequences("val", tasks.of_test),
        test=parts.sequences("test", tasks.of_test),
        scores=SequenceScores(),
        chunk=None,  # a step of one sequence reads every weight for a single product
        pictures=(),
        words=parts.words(ABOUT, tasks.in_words, NO_NORM),
        **parts.shown,
        **budget.of_experiment,
    )
