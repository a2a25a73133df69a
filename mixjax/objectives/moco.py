"""MoCo: tell the key of a query from a queue of keys of earlier steps.

Source: He et al., 2020 (equation 1, algorithm 1). Prediction q and target k are unit
embeddings; no gradient flows into the target or the queue, which is compared as it was
before this step. Keys are written in the order of the views.

queue = 0 is MoCo v3 (Chen et al., 2021, equation 1): the negatives are the other
targets of the batch, and the loss is multiplied by 2 T. As there, the prediction is the
predictor's output where the network has a predictor.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.objectives.contrast import among, products, unit
from mixjax.state import Objective

Array = jax.Array


def make(*, queue: int, temperature: float) -> Objective:
    """queue: K, a multiple of the keys that one step writes, or 0 for MoCo v3."""
    if queue < 0:
        raise UsageError(f"objective.queue={queue} must be at least 0.")

    def init(rng, outputs):
        width = outputs["projection"].shape[-1]
        return new_queue(rng, queue, width) if queue else {}

    def predict(outputs, memory, rng):
        return unit(outputs.get("prediction", outputs["projection"]))

    def target(outputs, memory, rng, view):
        return jax.lax.stop_gradient(unit(outputs["projection"]))

    def compare(prediction, target, memory):
        if not queue:
            # The factor of MoCo v3 makes the loss less sensitive to T.
            return 2 * temperature * among(prediction, target, temperature)
        return info_nce(prediction, target, memory["queue"], temperature)

    def remember(memory, targets):
        keys = [unit(outputs["projection"]) for outputs in targets]
        return enqueue(memory, jnp.concatenate(keys)) if queue else memory

    return Objective(init, predict, target, compare, remember)


def new_queue(rng: Array, length: int, width: int) -> dict:
    """{"queue": [K, d] random directions, "pointer": [] int32, the next row}."""
    rows = unit(jax.random.normal(rng, (length, width)))
    return {"queue": rows, "pointer": jnp.zeros((), jnp.int32)}


def logits(query: Array, key: Array, queue: Array, temperature: float) -> Array:
    """[B, 1 + K]: unit queries [B, d] with their own keys [B, d], then the queue."""
    positive = (query * key).sum(axis=1, keepdims=True)  # [B, 1]
    negatives = products(query, queue)  # [B, K]
    return jnp.concatenate([positive, negatives], axis=1) / temperature


def info_nce(query: Array, key: Array, queue: Array, temperature: float) -> Array:
    """Cross-entropy of each query's key among it and the queue [K, d]: [B] float32."""
    scores = logits(query, key, queue, temperature)  # [B, 1 + K]
    return jax.nn.logsumexp(scores, axis=1) - scores[:, 0]  # MoCo, equation 1


def enqueue(memory: dict, keys: Array) -> dict:
    """Overwrites the oldest n rows by unit keys [n, d].

    UsageError if n does not divide K: a step's keys would wrap around the end.
    """
    length, n = len(memory["queue"]), len(keys)
    if length % n:
        low = length // n * n
        fits = " or ".join(str(k) for k in (low, low + n) if k)
        raise UsageError(
            f"objective.queue={length} is not a multiple of the {n} keys that a step "
            f"writes; take {fits}."
        )
    keys, start = jax.lax.stop_gradient(keys), memory["pointer"]
    rows = jax.lax.dynamic_update_slice_in_dim(memory["queue"], keys, start, axis=0)
    return {"queue": rows, "pointer": (start + n) % length}
