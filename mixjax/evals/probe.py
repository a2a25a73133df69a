"""A linear probe on features that are computed once: the small-set protocol of HTDT.

Ermolov et al., "Whitening for self-supervised representation learning" (ICML 2021), and
the papers that build on its code: features of the backbone as they are, of pictures
without augmentation; one linear layer as torch starts it; Adam with L2, batches of
1000, 500 epochs, a rate that falls by a constant factor from epoch to epoch; accuracy
after the last. All of it runs on the devices as one program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixjax.errors import UsageError
from mixjax.evals import scores
from mixjax.evals.features import embedder, extract
from mixjax.sharding import meshes

Array = jax.Array
LEDGER = True


def fit(
    features: Array,
    labels: Array,
    *,
    classes: int,
    epochs: int,
    batch: int,
    first_rate: float,
    last_rate: float,
    weight_decay: float,
    seed: int,
) -> dict:
    """{"kernel" [D, classes], "bias"} trained on features [N, D], labels [N].

    The rate is first_rate * f^epoch, f so that after all epochs it would be last_rate.
    An epoch is N // batch batches of a new permutation.
    """
    count, width = features.shape
    batch = min(batch, count)
    keys = jax.random.split(jax.random.key(seed), 3)
    bound = width**-0.5
    params = {
        "kernel": bound * (2 * jax.random.uniform(keys[0], (width, classes)) - 1),
        "bias": bound * (2 * jax.random.uniform(keys[1], (classes,)) - 1),
    }
    adam = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(eps=1e-8)
    )
    factor = (last_rate / first_rate) ** (1 / epochs)

    def loss(params, x, y):
        logits = x @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(keys[2], number), count)
        order = order[: count // batch * batch].reshape(-1, batch)
        rate = first_rate * factor**number

        def step(carry, places):
            params, state = carry
            grads = jax.grad(loss)(params, features[places], labels[places])
            updates, state = adam.update(grads, state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, state), None

        return jax.lax.scan(step, carry, order)

    (params, _), _ = jax.lax.scan(
        epoch, (params, adam.init(params)), jnp.arange(epochs)
    )
    return params


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
    """The evaluator: top-1 of the held-out split after a probe of the training split.

    bank, queries: how many examples of each, spread evenly; 0 for all. The others: see
    fit. None if the data has no labels, several per picture, or no held-out split.
    """
    if epochs < 1 or batch < 1 or first_rate <= 0 or last_rate <= 0:
        raise UsageError(
            f"evals.probe: epochs={epochs}, batch={batch}, first_rate={first_rate} and "
            f"last_rate={last_rate} must all be above 0."
        )
    held_out = sets.test(queries) if sets.classes and not sets.several else None
    if held_out is None:
        return None
    data, classes = sets.bank(bank), sets.classes
    read = lambda state, x: network.features(state.params, state.stats, x)
    embed = embedder(read, data, mesh)
    how = dict(epochs=epochs, batch=batch, first_rate=first_rate, last_rate=last_rate)
    how |= dict(weight_decay=weight_decay, seed=seed, classes=classes)
    everywhere = meshes.replicated(mesh)
    train = jax.jit(lambda x, y: fit(x, y, **how), out_shardings=everywhere)

    def run(state, step, writer):
        features, labels = extract(embed, data, state, check)
        known = labels >= 0
        found = (features[known].astype(np.float32), labels[known])
        params = jax.device_get(train(*(meshes.put(x, everywhere) for x in found)))
        check()
        features, truth = extract(embed, held_out, state, check)
        logits = features @ params["kernel"] + params["bias"]
        name = f"probe/epochs={epochs}"
        return {
            f"{name}/top1": scores.top(logits, truth, 1),
            f"{name}/examples": len(truth),
        }

    return run
