"""A network whose own weights adapt: which models and targets fit, and what never adapts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from metakit import losses, nn
from metakit._episode import Examples, require_unmasked
from metakit._hyperparameter import trainable
from metakit._static import is_equinox_layer
from metakit._wording import describe, uncalled


def check_model(model: Any) -> None:
    """Refuse a model that keeps state, takes one example, or cannot be called."""
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex)  # noqa: E731
    if any(is_state(node) for node in jax.tree.leaves(model, is_leaf=is_state)):
        raise ValueError(
            f"the model {type(model).__name__} keeps Equinox state (eqx.nn.BatchNorm or another stateful layer), which "
            "adapt cannot thread through and stay a pure function. Use mk.nn.BatchStatNorm, which normalises by the "
            "batch at hand, or mk.nn.GroupNorm, which needs no batch."
        )
    require_batches("model", model)
    if isinstance(model, type):
        raise TypeError(f"model must be a network, got {describe(model)}. {uncalled(model)}")
    if not callable(model):
        raise TypeError(
            f"model must be callable, model(x: [n, *in]) -> [n, *out], got {describe(model)}. If it came from "
            "eqx.nn.make_with_state, use a model without state (mk.nn.BatchStatNorm in place of eqx.nn.BatchNorm)."
        )


def require_batches(name: str, network: Any) -> None:
    """A `TypeError` for a layer of Equinox's: it would take a batch for one example."""
    if (layer := _takes_one_example(network)) is not None:
        raise TypeError(
            f"{name} takes one example (eqx.nn.{layer} does), and learners call it with a batch [n, *in]: lift it, "
            f"mk.nn.batched({name})."
        )


# Equinox's layers take one example, but for these, which hand on what they are given.
_TRANSPARENT = (eqx.nn.Sequential, eqx.nn.Lambda, eqx.nn.Identity)


def _takes_one_example(model: Any) -> str | None:
    """The name of the layer of Equinox's that a batch would go into as if it were one example."""
    if isinstance(model, eqx.nn.Sequential):
        return next(filter(None, map(_takes_one_example, model.layers)), None)
    others = is_equinox_layer(model) and not isinstance(model, _TRANSPARENT)
    return type(model).__name__ if others else None


def check_instance(name: str, value: Any, kind: type, example: str) -> None:
    """Refuse a solver or adjoint that is not one."""
    if not isinstance(value, kind):
        advice = f" {uncalled(value)}" if isinstance(value, type) else ""
        raise TypeError(
            f"{name} must be an mk.inner.{kind.__name__}, such as {example}; got {describe(value)}.{advice}"
        )


def check_loss(loss: Any, name: str = "loss") -> None:
    """Refuse what is no function, such as a loss's name."""
    if not callable(loss):
        raise TypeError(
            f"{name} must be a function loss(outputs, targets, *, reduction), such as mk.losses.squared_error; got "
            f"{describe(loss)}."
        )


def check_query_loss(loss: Any, query_loss: Any, learner: str) -> None:
    """Refuse a loss that learns to find its own result good."""
    if query_loss is not None:
        check_loss(query_loss, "query_loss")
    elif any(jax.tree.leaves(trainable(loss))):
        raise ValueError(
            f"loss is {describe(loss)} with weights that training moves, and would judge the queries too: the "
            f"meta-loss falls as it learns to be small, whatever the predictions. Give {learner}(..., query_loss=...) "
            "the loss that you care about, such as mk.losses.squared_error."
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
    if loss == losses.cross_entropy and not jnp.issubdtype(examples.y.dtype, jnp.integer):
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
