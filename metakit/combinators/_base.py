"""What combinators ask of the algorithm that they are made of, and of its tasks."""

from typing import Any

from jaxtyping import Array

from metakit._episode import Examples, MaskedExamples
from metakit._normal import Normal
from metakit._wording import describe


def require_examples(support: Any, combinator: str) -> None:
    if not isinstance(support, Examples | MaskedExamples):
        raise TypeError(
            f"{combinator} adapts to the examples of an episode, got {describe(support)}. Give episode.support, and an "
            "algorithm of episodes: what another predicts it cannot combine."
        )


def require_outputs(outputs: Any, combinator: str) -> None:
    if not isinstance(outputs, Array | Normal):
        raise TypeError(
            f"{combinator} combines logits, real values or mk.Normal, got {describe(outputs)} from the algorithm's "
            "predict. Return one of them."
        )


def name_over(combinator: str, base: Any) -> str:
    """The name of a combined algorithm, for reports and records."""
    return f"{combinator}({getattr(base, '__name__', type(base).__name__)})"
