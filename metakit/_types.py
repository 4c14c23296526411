"""Names for the types that appear everywhere."""

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Key, Shaped

Scalar: TypeAlias = Float[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

# One array, or several of each example.
Inputs: TypeAlias = Shaped[Array, "n *in"] | dict | tuple

# A task is whatever a meta-learner understands: an `Episode` in supervised learning, environment parameters in
# reinforcement learning. The three functions agree on it; the toolkit only maps over its leaves.
Task: TypeAlias = Any
