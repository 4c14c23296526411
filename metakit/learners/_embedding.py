"""Embedding a support set, and queries beside it, under a batch-norm policy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from metakit import nn

NORM_POLICIES = ("joint", "transductive", "inductive")


class EmbeddedSupport(eqx.Module):
    """What is kept of a support set: its features, or under the joint policy its inputs, and the networks."""

    embed: Callable[..., Any]
    embed_query: Callable[..., Any] | None
    x: Shaped[Array, "n *in"] | None
    features: Float[Array, "n d"] | None
    input_shape: tuple[int, ...] = eqx.field(static=True)


def embed_support(
    embed: Callable[..., Any],
    embed_query: Callable[..., Any] | None,
    x: Shaped[Array, "n *in"],
    norm_policy: str,
) -> EmbeddedSupport:
    """Embed a support set as far as the policy allows before the queries are known."""
    shape = x.shape[1:]
    if norm_policy == "joint":
        return EmbeddedSupport(embed, embed_query, x, None, shape)
    if norm_policy == "inductive":
        embed = nn.freeze_statistics(embed, x)
        embed_query = None if embed_query is None else nn.freeze_statistics(embed_query, x)
    return EmbeddedSupport(embed, embed_query, None, _features(embed, x, "embed"), shape)


def embed_queries(
    support: EmbeddedSupport, x: Shaped[Array, "query *in"]
) -> tuple[Float[Array, "n d"], Float[Array, "query d"]]:
    """Embed queries; returns the features of the support set and of the queries."""
    if x.shape[1:] != support.input_shape:
        raise ValueError(
            f"x must hold examples of the support's shape {list(support.input_shape)}, got "
            f"{list(x.shape[1:])} in x{list(x.shape)}. One query still needs the leading axis: x[None]."
        )
    embed_query, name = (
        (support.embed, "embed") if support.embed_query is None else (support.embed_query, "embed_query")
    )
    if support.x is None:
        features, queries = support.features, _features(embed_query, x, name)
    else:
        n = support.x.shape[0]
        if x.dtype != support.x.dtype:
            raise ValueError(f"x must have the support's dtype {support.x.dtype}, got {x.dtype}.")
        both = jnp.concatenate([support.x, x])
        together = _features(support.embed, both, "embed")
        features = together[:n]
        # Two networks: each sees the whole batch, so that both normalise by support and query together.
        queries = together[n:] if support.embed_query is None else _features(embed_query, both, name)[n:]
    assert features is not None  # one of x and features is always kept
    if features.shape[1] != queries.shape[1]:
        raise ValueError(
            f"embed and embed_query must return features of one size, got {features.shape[1]} and {queries.shape[1]}."
        )
    return features, queries


def _features(embed: Callable[..., Any], x: Shaped[Array, "n *in"], name: str) -> Float[Array, "n d"]:
    features = embed(x)
    if features.ndim != 2 or features.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} must map a batch of {x.shape[0]} examples to features [{x.shape[0]}, d], got shape "
            f"{list(features.shape)}. Flatten feature maps (features.reshape(len(x), -1)), and lift a module "
            "written for one example with mk.nn.batched."
        )
    return features
