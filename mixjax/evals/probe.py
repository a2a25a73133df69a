"""A linear probe on precomputed features: the small-data protocol of HTDT.

Ermolov et al., "Whitening for self-supervised representation learning" (ICML 2021), and
papers that build on its code: unaugmented images, frozen features of the backbone, and
one linear layer with torch's default initialisation, trained by Adam with L2
regularisation for 500 epochs in batches of 1000, at a rate that decays exponentially
from epoch to epoch; the accuracy is that after the last epoch. The whole training is
one program on the devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixjax.data import Data
from mixjax.errors import UsageError
from mixjax.evals import scores
from mixjax.evals.features import embedder, extract
from mixjax.sharding import meshes

Array = jax.Array
LEDGER = True


class Training(NamedTuple):
    """How the linear layer is trained."""

    classes: int
    epochs: int
    batch: int
    first_rate: float
    last_rate: float  # the rate that the decay would reach after the last epoch
    weight_decay: float  # L2, added to the gradient before Adam
    seed: int

    @property
    def decay(self) -> float:
        """The factor between the rates of consecutive epochs."""
        return (self.last_rate / self.first_rate) ** (1 / self.epochs)

    @property
    def adam(self) -> optax.GradientTransformation:
        """Adam with L2 as in torch: the penalty is part of the gradient, not decoupled.

        Its updates have yet to be multiplied by the rate.
        """
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_adam(eps=1e-8),
        )


def init_linear(key_kernel, key_bias, width: int, classes: int) -> dict:
    """{"kernel" [D, classes], "bias" [classes]}, uniform as torch's nn.Linear."""
    bound = width**-0.5
    return {
        "kernel": bound * (2 * jax.random.uniform(key_kernel, (width, classes)) - 1),
        "bias": bound * (2 * jax.random.uniform(key_bias, (classes,)) - 1),
    }


def loss(params: dict, features: Array, labels: Array) -> Array:
    """Mean cross-entropy of features [B, D] with labels [B]."""
    logits = features @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def fit(features: Array, labels: Array, training: Training) -> dict:
    """{"kernel" [D, classes], "bias"} trained on features [N, D], labels [N].

    An epoch is N // batch batches of a new permutation; what does not fill a batch is
    left out. Runs under jit.
    """
    count, width = features.shape
    batch = min(training.batch, count)
    keys = jax.random.split(jax.random.key(training.seed), 3)
    params = init_linear(keys[0], keys[1], width, training.classes)
    adam, decay = training.adam, training.decay

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(keys[2], number), count)
        order = order[: count // batch * batch].reshape(-1, batch)  # [steps, batch]
        rate = training.first_rate * decay**number

        def step(carry, places):
            params, state = carry
            grads = jax.grad(loss)(params, features[places], labels[places])
            updates, state = adam.update(grads, state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, state), None

        return jax.lax.scan(step, carry, order)

    epochs = jnp.arange(training.epochs)
    (params, _), _ = jax.lax.scan(epoch, (params, adam.init(params)), epochs)
    return params


class Probe(NamedTuple):
    """What evaluates features by a linear probe."""

    training: Training
    train: Callable  # (features, labels) -> params, jitted
    embed: Callable  # see features.embedder
    bank: Data  # training examples
    held_out: Data
    mesh: object
    check: Callable


def evaluate(probe: Probe, state, step: int, writer) -> dict[str, float]:
    """{metric: value}: top-1 in percent, and the number of examples."""
    features, labels = extract(probe.embed, probe.bank, state, probe.check)
    labelled = labels >= 0  # most of STL-10's training images have no label
    features, labels = features[labelled].astype(np.float32), labels[labelled]
    everywhere = meshes.replicated(probe.mesh)
    features, labels = (meshes.put(x, everywhere) for x in (features, labels))
    params = jax.device_get(probe.train(features, labels))
    probe.check()
    features, truth = extract(probe.embed, probe.held_out, state, probe.check)
    logits = features @ params["kernel"] + params["bias"]
    name = f"probe/epochs={probe.training.epochs}"
    return {
        f"{name}/top1": scores.top(logits, truth, 1),
        f"{name}/examples": len(truth),
    }


def make(
    *,
    epochs: int,
    batch: int,
    first_rate: float,
    last_rate: float,
    weight_decay: float,
    seed: int,
    bank: int,
    queries: int,
    sets,
    network,
    mesh,
    check: Callable,
) -> Callable | None:
    """The evaluator: top-1 on the held-out split of a probe of the training split.

    bank, queries: number of training and of held-out examples, spread evenly; 0 for
    all. The others: see Training. Returns None if the data has no labels, several
    labels per image, or no held-out split.
    """
    if epochs < 1 or batch < 1 or first_rate <= 0 or last_rate <= 0:
        raise UsageError(
            f"evals.probe: epochs={epochs}, batch={batch}, first_rate={first_rate} and "
            f"last_rate={last_rate} must all be above 0."
        )
    held_out = sets.test(queries) if sets.classes and not sets.several else None
    if held_out is None:
        return None
    training = Training(
        sets.classes, epochs, batch, first_rate, last_rate, weight_decay, seed
    )
    everywhere = meshes.replicated(mesh)
    train = jax.jit(lambda x, y: fit(x, y, training), out_shardings=everywhere)
    # The backbone's own features, whatever method.features makes of them.
    embed_images = lambda state, x: network.features(state.params, state.stats, x)
    data = sets.bank(bank)
    embed = embedder(embed_images, data, mesh)
    probe = Probe(training, train, embed, data, held_out, mesh, check)
    return functools.partial(evaluate, probe)
