"""Numbers and sizes of learners outside their documented ranges, over every learner that has some."""

import jax
import pytest

import metakit as mk
from metakit.learners.meta_lstm import LearnedUpdate
from metakit.learners.neural_process import Attention, NeuralProcess

KEY = jax.random.key(0)


def acting(**options):
    policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 4, 1, key=KEY), 2)
    return mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.1), **options)


def exploring(**options):
    arms = mk.Discrete(2)
    network = mk.nn.GRU(mk.rl_squared.token_size((1,), arms), 4, key=KEY)
    policy = mk.rl_squared.RecurrentPolicy(network, (1,), arms, key=KEY)
    return mk.rl_squared.RLSquared(policy, **({"num_episodes": 2} | options))


def sets(**options):
    return mk.statistician.of_vectors(1, key=KEY, **({"width": 4} | options))


def playing(**options):
    base = mk.prototypical.Prototypical(lambda x: x)
    parts = {"generator": lambda z: z[:, :2], "encoder": lambda x: x, "noise_size": 2, "adapt_to_fakes": False}
    return mk.metagan.MetaGAN(mk.prototypical, base, **(parts | options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sets(sample_dropout=1.0), r"sample_dropout must be from 0 to below 1, got 1"),
        (lambda: sets(emphasis=-1.0), r"emphasis must be a finite number of at least 0, got -1"),
        (lambda: sets(width=0), r"width must be at least 1, got 0"),
        (lambda: sets(latent_size=2.5), r"latent_size must be a whole number, got 2.5 \(float\)"),
        (
            lambda: Attention("laplace", in_size=1, value_size=2, length_scale=0.0, key=KEY),
            r"length_scale must be .* above 0",
        ),
        (lambda: NeuralProcess(1, 1, min_scale=2.0, key=KEY), r"min_scale must be from 0 to below 1, got 2"),
        (lambda: NeuralProcess(1, 2.5, key=KEY), r"out_size must be a whole number"),
        (lambda: acting(discount=1.5), r"discount must be from 0 to 1, got 1.5"),
        (lambda: acting(trace_decay=-0.1), r"trace_decay must be from 0 to 1, got -0.1"),
        (lambda: acting(clip=-1.0), r"clip must be a finite number above 0, got -1"),
        (lambda: acting(baseline_penalty=0.0), r"baseline_penalty must be a finite number above 0, got 0"),
        (lambda: acting(num_episodes=2.5), r"num_episodes must be a whole number"),
        (lambda: exploring(trace_decay=2.0), r"trace_decay must be from 0 to 1, got 2"),
        (lambda: exploring(discount=float("nan")), r"discount must be from 0 to 1, got nan"),
        (lambda: exploring(entropy_weight=-1.0), r"entropy_weight must be a finite number of at least 0"),
        (lambda: exploring(num_episodes=2.5), r"num_episodes must be a whole number"),
        (lambda: mk.mann.MANN(2, 2, decay=1.5, key=KEY), r"decay must be from 0 to 1, got 1.5"),
        (lambda: mk.mann.MANN(2, 2, hidden=2.5, key=KEY), r"hidden must be a whole number"),
        (lambda: mk.metagan.DiscriminatorLoss(fake_weight=-1.0), r"fake_weight must be .* at least 0, got -1"),
        (lambda: playing(noise_size=2.5), r"noise_size must be a whole number"),
        (lambda: LearnedUpdate(p=0.0, key=KEY), r"p must be a finite number above 0, got 0"),
        (lambda: LearnedUpdate(2.5, key=KEY), r"hidden_size must be a whole number"),
    ],
)
def test_numbers_outside_their_range_are_refused(make, message):
    """Catches a learner that takes what its documentation excludes and divides by zero, or trains backwards, later."""
    with pytest.raises(ValueError, match=message):
        make()
