"""MoCo: an embedding finds its key among a queue of keys of earlier steps.

Source: He et al., 2020 (equation 1, algorithm 1). Prediction q and target k are unit
embeddings; the target gets no gradient, and neither does the queue, whose rows are
those from before this step. Keys are written in the order of the views.

queue = 0 is MoCo v3 (Chen et al., 2021, equation 1): the negatives are the other
targets of the batch, and the loss is multiplied by 2 T. A prediction is read from the
predictor where the network has one, as there.
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
            return 2 * temperature * among(prediction, target, temperature)
        return info_nce(prediction, target, memory["queue"], temperature)

    def remember(memory, targets):
        keys = [unit(outputs["projection"]) for outputs in targets]
        return enqueue(memory, jnp.concatenate(keys)) if queue else memory

    return Objective(init, predict, target, compare, remember)


def new_queue(rng: Array, length: int, width: int) -> dict:
    """{"queue": [K, d] random directions, "pointer": [] int32, the next to go}."""
    rows = unit(jax.random.normal(rng, (length, width)))
    return {"queue": rows, "pointer": jnp.zeros((), jnp.int32)}


def logits(query: Array, key: Array, queue: Array, temperature: float) -> Array:
    """[B, 1 + K]: unit queries [B, d] with their own keys [B, d], then the queue."""
    own = (query * key).sum(axis=1, keepdims=True)  # [B, 1]
    others = products(query, queue)  # [B, K]
    return jnp.concatenate([own, others], axis=1) / temperature


def info_nce(query: Array, key: Array, queue: Array, temperature: float) -> Array:
    """Cross-entropy of each query's own key among the queue [K, d], [B] float32."""
    found = logits(query, key, queue, temperature)
    return jax.nn.logsumexp(found, axis=1) - found[:, 0]


def enqueue(memory: dict, keys: Array) -> dict:
    """Writes unit keys [n, d] over the oldest n rows; UsageError if n misfits K."""
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
