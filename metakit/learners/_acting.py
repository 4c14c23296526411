"""Checks that learners which act share."""

from typing import Any

from metakit._environment import AbstractEnvironment
from metakit._types import PRNGKey


def require_key(key: PRNGKey | None, learner: str) -> PRNGKey:
    """Acting draws actions, so it needs a key."""
    if key is None:
        raise ValueError(
            f"{learner} acts in its environment and needs a key for what is random in that, got None. Pass one: "
            "meta_loss(learner, task, jax.random.key(0))."
        )
    return key


def require_task(task: Any, data: type, learner: str) -> None:
    """A task is an environment, or what was collected in one."""
    if not isinstance(task, AbstractEnvironment | data):
        raise TypeError(
            f"{learner} needs an mk.AbstractEnvironment (such as mk.tasks.Bandits(5)(key)) or the {data.__name__} that "
            f"collect made in one, got {type(task).__name__}."
        )
