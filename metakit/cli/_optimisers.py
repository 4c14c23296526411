"""The outer optimisers of the command line's algorithms."""

import dataclasses

import optax

from metakit import train
from metakit.learners import metagan

from ._config import Settings


def adam(settings: Settings) -> optax.GradientTransformation:
    """Adam with the schedule of the settings."""
    whole, fifth = {"num_steps": settings.steps}, {"every": max(settings.steps // 5, 1)}
    options = {"cosine": whole, "cooldown": whole, "halving": fifth}
    return train.adam(
        settings.rate,
        schedule=settings.schedule,
        clip_norm=settings.clip_norm,
        **options.get(settings.schedule, {}),
    )


def towards_solutions(settings: Settings) -> optax.GradientTransformation:
    """Reptile's published outer step: a rate that falls to 0 along a line."""
    return optax.sgd(optax.linear_schedule(settings.rate, 0.0, settings.steps))


def two_players(settings: Settings) -> optax.GradientTransformation:
    """MetaGAN's generator: DCGAN's momentum, and the classifier's rate without its schedule or clipping."""
    generator = optax.adam(settings.rate, b1=0.5)
    return optax.multi_transform({"discriminator": adam(settings), "generator": generator}, metagan.players)


# How often PPO goes over what it collected; each time is a step of the optimiser.
EPOCHS = 3


def for_epochs(settings: Settings) -> optax.GradientTransformation:
    """Adam whose schedule counts the epochs of PPO."""
    return adam(dataclasses.replace(settings, steps=EPOCHS * settings.steps))


def identity(settings: Settings) -> optax.GradientTransformation:
    """A trust region step needs no optimiser."""
    del settings
    return optax.identity()
