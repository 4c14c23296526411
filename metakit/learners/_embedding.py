"""Embedding a support set, and queries beside it, under a batch-norm policy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from metakit import nn

from ._network import require_batches

NORM_POLICIES = ("joint", "transductive", "inductive")


class EmbeddedSupport(eqx.Module):
    """What is kept of a support set: its features, or under the joint policy its inputs, and the networks.

    Features are rows `[n, d]`, or with `maps` feature maps `[n, c, h, w]`.
    """

    embed: Callable[..., Any]
    embed_query: Callable[..., Any] | None
    x: Shaped[Array, "n *in"] | None
    features: Float[Array, "n *feature"] | None
    input_shape: tuple[int, ...] = eqx.field(static=True)
    maps: bool = eqx.field(static=True)


def embed_support(
    embed: Callable[..., Any],
    embed_query: Callable[..., Any] | None,
    x: Shaped[Array, "n *in"],
    norm_policy: str,
    *,
    maps: bool = False,
) -> EmbeddedSupport:
    """Embed a support set as far as the policy allows before the queries are known."""
    shape = x.shape[1:]
    if norm_policy == "joint":
        return EmbeddedSupport(embed, embed_query, x, None, shape, maps)
    if norm_policy == "inductive":
        embed = nn.freeze_statistics(embed, x)
        embed_query = None if embed_query is None else nn.freeze_statistics(embed_query, x)
    return EmbeddedSupport(embed, embed_query, None, features(embed, x, "embed", maps), shape, maps)


def embed_queries(
    support: EmbeddedSupport, x: Shaped[Array, "query *in"]
) -> tuple[Float[Array, "n *feature"], Float[Array, "query *feature"]]:
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
        embedded, queries = support.features, features(embed_query, x, name, support.maps)
    else:
        n = support.x.shape[0]
        if x.dtype != support.x.dtype:
            raise ValueError(f"x must have the support's dtype {support.x.dtype}, got {x.dtype}.")
        both = jnp.concatenate([support.x, x])
        together = features(support.embed, both, "embed", support.maps)
        embedded = together[:n]
        # Two networks: each sees the whole batch, so that both normalise by support and query together.
        queries = together[n:] if support.embed_query is None else features(embed_query, both, name, support.maps)[n:]
    assert embedded is not None  # one of x and features is always kept
    if embedded.shape[1] != queries.shape[1]:
        raise ValueError(
            f"embed and embed_query must return features of one size, got {embedded.shape[1]} and {queries.shape[1]}."
        )
    return embedded, queries


def features(embed: Callable[..., Any], x: Shaped[Array, "n *in"], name: str, maps: bool) -> Float[Array, "n *feature"]:
    """What a network makes of a batch: rows of features or, with `maps`, feature maps."""
    require_batches(name, embed)
    embedded = embed(x)
    n = x.shape[0]
    if embedded.ndim != (4 if maps else 2) or embedded.shape[0] != n:
        expected, hint = (
            (f"feature maps [{n}, channels, height, width]", "Leave out the pooling over space and the flattening")
            if maps
            else (f"features [{n}, d]", "Flatten feature maps (features.reshape(len(x), -1))")
        )
        raise ValueError(
            f"{name} must map a batch of {n} examples to {expected}, got shape {list(embedded.shape)}. {hint}, and "
            "lift a module written for one example with mk.nn.batched."
        )
    return embedded
