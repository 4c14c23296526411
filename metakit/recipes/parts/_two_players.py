"""What the recipes of MetaGAN share: a generator against a classifier."""

from typing import Any

import jax
import optax

from metakit import nn
from metakit.learners import metagan

from ._loops import Adam

_NOISE = 100
_CODE_WIDTH = 16


def against_a_generator(
    algorithm: Any,
    base: Any,
    shape: tuple[int, int],
    way: int,
    generator_key: jax.Array,
    encoder_key: jax.Array,
    **options: Any,
) -> metagan.MetaGAN:
    """One fake for each class, for time: over Prototypical Networks as many as there are queries make a step twice as
    slow."""
    channels, size = shape
    code = _CODE_WIDTH * (size // 16) ** 2
    return metagan.MetaGAN(
        algorithm,
        base,
        generator=nn.ImageGenerator(_NOISE + code, channels, size, key=generator_key),
        encoder=nn.Conv4(channels, size, width=_CODE_WIDTH, key=encoder_key),
        noise_size=_NOISE,
        num_fakes=way,
        **options,
    )


def two_players(outer: Adam, steps: int) -> optax.GradientTransformation:
    """MetaGAN's generator: DCGAN's momentum, and the classifier's rate without its schedule or clipping."""
    generator = optax.adam(outer.rate, b1=0.5)
    return optax.multi_transform({"discriminator": outer.optimiser(steps), "generator": generator}, metagan.players)
