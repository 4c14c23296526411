"""A network whose own weights adapt: which models and targets fit, and what never adapts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from metakit import losses, nn
from metakit._episode import Examples
from metakit._wording import describe, uncalled

from ._labels import require_unmasked


def check_model(model: Any) -> None:
    """Refuse a model that keeps state, or cannot be called."""
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex)  # noqa: E731
    if any(is_state(node) for node in jax.tree.leaves(model, is_leaf=is_state)):
        raise ValueError(
            f"the model {type(model).__name__} keeps Equinox state (eqx.nn.BatchNorm or another stateful layer), which "
            "adapt cannot thread through and stay a pure function. Use mk.nn.BatchStatNorm, which normalises by the "
            "batch at hand, or mk.nn.GroupNorm, which needs no batch."
        )
    if isinstance(model, type):
        raise TypeError(f"model must be a network, got {describe(model)}. {uncalled(model)}")
    if not callable(model):
        raise TypeError(
            f"model must be callable, model(x: [n, *in]) -> [n, *out], got {describe(model)}. If it came from "
            "eqx.nn.make_with_state, use a model without state (mk.nn.BatchStatNorm in place of eqx.nn.BatchNorm)."
        )


def check_instance(name: str, value: Any, kind: type, example: str) -> None:
    """Refuse a solver or adjoint that is not one."""
    if not isinstance(value, kind):
        advice = f" {uncalled(value)}" if isinstance(value, type) else ""
        raise TypeError(
            f"{name} must be an mk.inner.{kind.__name__}, such as {example}; got {describe(value)}.{advice}"
        )


def check_loss(loss: Any) -> None:
    """Refuse what is no function, such as a loss's name."""
    if not callable(loss):
        raise TypeError(
            "loss must be a function loss(outputs, targets, *, reduction), such as mk.losses.squared_error; got "
            f"{describe(loss)}."
        )


def check_way(outputs: Array, way: int | None) -> None:
    """The model must give one logit per class of this episode."""
    if way is not None and (outputs.ndim != 2 or outputs.shape[1] != way):
        raise ValueError(
            f"the model gives outputs of shape {list(outputs.shape)}, but the task has way={way}, so it must give "
            f"[n, {way}]. A gradient-based learner has a fixed head: build the model with out_size={way}, or sample "
            f"episodes with the way it was built for."
        )


def check_targets(loss: Callable[..., Any], examples: Examples, name: str) -> None:
    """Cross-entropy needs integer labels, and no loss here leaves padding out."""
    require_unmasked(examples, "a learner whose network adapts", name)
    if examples.way is not None and examples.y.ndim != 1:
        raise ValueError(
            f"{name}.y must hold one label per example, shape [n], got {list(examples.y.shape)}. A batch of tasks goes "
            "through eqx.filter_vmap; one-hot rows through y.argmax(-1)."
        )
    if loss is losses.cross_entropy and not jnp.issubdtype(examples.y.dtype, jnp.integer):
        raise ValueError(
            f"loss=mk.losses.cross_entropy (the default) needs integer labels, got {name}.y of dtype "
            f"{examples.y.dtype} and shape {list(examples.y.shape)}. For real targets pass "
            "loss=mk.losses.squared_error; for labels use y.astype('int32') and set way."
        )


def not_statistics(model: Any) -> Any:
    """A filter that leaves out frozen batch statistics: they are measured, so a gradient step on them is a mistake."""

    def is_statistics(node: Any) -> bool:
        return isinstance(node, nn.Statistics)

    def mark(node: Any) -> Any:
        return jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not is_statistics(node), node)

    return jax.tree.map(mark, model, is_leaf=is_statistics)
