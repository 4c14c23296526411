"""Learners that draw random numbers."""

from metakit._types import PRNGKey


def require_key(key: PRNGKey | None, learner: str, function: str) -> PRNGKey:
    """The key, or a `ValueError` that says what it is for."""
    if key is None:
        raise ValueError(
            f"{learner}'s {function} draws random numbers and needs a key as its last argument, got None. "
            "Pass one, such as jax.random.key(0), and another for each call."
        )
    return key
