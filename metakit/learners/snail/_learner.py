"""SNAIL's learner, and the network that was published for few-shot classification."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax

from metakit import losses, nn
from metakit._errors import require_option
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey
from metakit.learners._embedding import NORM_POLICIES


class SNAIL(eqx.Module):
    r"""A Simple Neural Attentive Meta-Learner, for classification.

    $$u_i = [f_\theta(x_i), \operatorname{onehot}(y_i)], \qquad u_q = [f_\theta(x_q), 0], \qquad
      z(x_q) = h_\theta\bigl(\operatorname{trunk}_\theta(u_1, \dots, u_n, u_q)\bigr)_{n+1}$$

    A token is an embedded example beside its one-hot label; the query comes last, with zeros where its label
    would be, and what the trunk gives at that token becomes its logits. `few_shot` builds the published
    network.

    The support set is read **in the order in which it is given**, so `adapt` needs no key. The paper puts it
    in random order, which the sampler does: `mk.tasks.Episodes(..., shuffle=True)`.

    **Arguments:**

    - `embed`: the embedding network $f_\theta$, `[n, *in] -> [n, d]`; any callable on a batch.
    - `trunk`: an `mk.nn.CausalSequence` of tokens of $d$ + way features, for at least one token more than the
      support has examples.
    - `head`: an `mk.nn.Linear` from the trunk's features to the logits (a convolution of width 1); its
      outputs fix the number of classes.
    - `loss`: `loss(logits, labels, *, reduction)`; default `mk.losses.cross_entropy`.
    - `norm_policy`: which batch a batch norm of `embed` takes its statistics from.
        - `"joint"` (default): support and query in one batch. This is *transductive*: the queries share
          information with each other, and a score depends on which others are asked beside it.
        - `"transductive"`: the support as one batch, the queries as another. The queries share information
          here too.
        - `"inductive"`: statistics of the support set, frozen. A score depends on nothing but the support and
          its own query.

        Name the policy beside every accuracy you report. The joint policy embeds and reads the support again
        for each `predict`; where `embed` has no batch norm, `"transductive"` gives the same numbers and reads
        it once.
    - `random_shot`: train as published, for several shots at once: `meta_loss` draws a shot from
      $1, \dots, n/\text{way}$ for each task, reads that many examples of each class in random order, and
      leaves out the rest. It needs a key then. `adapt` always reads the whole support set. Default `False`.
      Under the joint policy the examples left out still count in the batch statistics.

    **Raises:** `ValueError` for an unknown `norm_policy`, or a head that does not fit the trunk.

    >>> import jax, metakit as mk
    >>> trunk = mk.nn.CausalSequence([mk.nn.CausalAttention(4, 4, 2, key=jax.random.key(0))], length=3)
    >>> learner = mk.snail.SNAIL(lambda x: x, trunk, mk.nn.Linear(6, 2, key=jax.random.key(1)))
    >>> learner.trunk.length, learner.norm_policy
    (3, 'joint')

    **Source:** Mishra, Rohaninejad, Chen and Abbeel, "A Simple Neural Attentive Meta-Learner", 2018, sections
    3 and 5.1, https://arxiv.org/abs/1707.03141. There a sequence has one query; here every query of an
    episode is asked as the last token of its own sequence, against one reading of the support, and the loss
    is their mean.
    """

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    trunk: nn.CausalSequence
    head: nn.Linear
    loss: losses.Loss = eqx.field(converter=as_node)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)
    random_shot: bool = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        trunk: nn.CausalSequence,
        head: nn.Linear,
        *,
        loss: losses.Loss = losses.cross_entropy,
        norm_policy: str = "joint",
        random_shot: bool = False,
    ):
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        if head.weight.shape[0] != trunk.out_size:
            raise ValueError(
                f"head must take the trunk's {trunk.out_size} features, got one for {head.weight.shape[0]}. Build it "
                f"as mk.nn.Linear({trunk.out_size}, way, key=...)."
            )
        self.embed = embed
        self.trunk = trunk
        self.head = head
        self.loss = loss
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]
        self.random_shot = random_shot


@typed
def few_shot_trunk(in_size: int, length: int, *, paper_dilation: bool = False, key: PRNGKey) -> nn.CausalSequence:
    r"""The published stack for few-shot classification.

    $$\operatorname{Attn}(64, 32) \to \operatorname{TC}(T, 128) \to \operatorname{Attn}(256, 128)
      \to \operatorname{TC}(T, 128) \to \operatorname{Attn}(512, 256)$$

    **Arguments:**

    - `in_size`: features of a token: those of the embedding, and one for each class.
    - `length`: $T$, tokens of the longest sequence: way times shot, and the query; at least 2.
    - `paper_dilation`: as in `mk.nn.TemporalConvolution`; default `False`.
    - `key`: random key of the initial weights.

    **Returns:** an `mk.nn.CausalSequence`, with `in_size` + 416 + 256 ⌈log2 T⌉ features out.

    **Raises:** `ValueError` for a size below 1 or a `length` below 2.

    **Source:** Mishra et al. 2018, section 5.1 and appendix A, https://arxiv.org/abs/1707.03141

    >>> import equinox as eqx, jax, metakit as mk
    >>> build = lambda key: mk.snail.few_shot_trunk(69, 6, key=key)
    >>> eqx.filter_eval_shape(build, jax.random.key(0)).out_size
    1253
    """
    keys = jax.random.split(key, 5)
    layers, size = [], in_size
    for i, (key_size, value_size) in enumerate([(64, 32), (256, 128), (512, 256)]):
        if i > 0:
            layers.append(
                nn.TemporalConvolution(size, 128, length=length, paper_dilation=paper_dilation, key=keys[2 * i - 1])
            )
            size = layers[-1].out_size
        layers.append(nn.CausalAttention(size, key_size, value_size, key=keys[2 * i]))
        size = layers[-1].out_size
    return nn.CausalSequence(layers, length=length)


@typed
def few_shot(
    embed: Callable[..., Any],
    features: int,
    *,
    way: int,
    shot: int,
    paper_dilation: bool = False,
    key: PRNGKey,
    **options: Any,
) -> SNAIL:
    """The published network for `way` classes and up to `shot` examples of each.

    **Arguments:**

    - `embed`: the embedding network, `[n, *in] -> [n, features]`; the paper's for Omniglot is
      `mk.nn.conv4_64`, with 64 features.
    - `features`: features of the embedding.
    - `way`, `shot`: the largest episode; at least 1 each. Episodes of fewer shots are welcome.
    - `paper_dilation`: as in `mk.nn.TemporalConvolution`; default `False`.
    - `key`: random key of the trunk's and the head's initial weights.
    - `options`: `loss`, `norm_policy` and `random_shot` of `SNAIL`.

    **Returns:** a `SNAIL`.

    **Raises:** `ValueError` for a `way` or `shot` below 1, and what `SNAIL` raises.

    >>> import equinox as eqx, jax, metakit as mk
    >>> def build(key):
    ...     embed_key, key = jax.random.split(key)
    ...     return mk.snail.few_shot(mk.nn.conv4_64(key=embed_key), 64, way=5, shot=1, key=key)
    >>> eqx.filter_eval_shape(build, jax.random.key(0)).head.weight.shape
    (1253, 5)
    """
    if way < 1 or shot < 1:
        raise ValueError(f"way and shot must be at least 1, got {way} and {shot}: there is nothing to read otherwise.")
    trunk_key, head_key = jax.random.split(key)
    trunk = few_shot_trunk(features + way, way * shot + 1, paper_dilation=paper_dilation, key=trunk_key)
    head = nn.Linear(trunk.out_size, way, weight_init=nn.xavier_uniform, key=head_key)
    return SNAIL(embed, trunk, head, **options)
