"""SwAV: from one view, predict the code that the prototypes give to the other view.

Source: Caron et al., 2020 (equations 2 to 5, appendix A), and its code for the queue.
Codes are the scores of unit embeddings with unit prototypes, balanced over prototypes
and samples by Sinkhorn-Knopp; they get no gradient. A queue of embeddings of earlier
steps takes part in the balancing, one for each assigning view, newest in front.

Departure: the scaling works on logarithms, where the code takes exp(score / epsilon)
and can overflow; the result is the same. The prototypes are those of this step.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from mixjax.errors import UsageError
from mixjax.objectives.contrast import products
from mixjax.state import Clock, Objective

Array = jax.Array
VIEWS = 2  # that assign codes


def make(
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    queue: int,
    queue_start_epochs: float,
    clock: Clock,
) -> Objective:
    """queue: embeddings kept per assigning view, 0 for none.

    As many of them count as whole batches fill, so none if the batch is larger. It
    fills from `queue_start_epochs` on and counts once it is full.
    """
    for name, value, least in (("queue", queue, 0), ("iterations", iterations, 1)):
        if value < least:
            raise UsageError(f"objective.{name}={value} must be at least {least}.")

    def init(rng, outputs):
        if not queue:
            return {}
        shape = (VIEWS, queue, outputs["embedding"].shape[1])
        empty = jnp.zeros(shape, jnp.float32)
        return {"queue": empty, "steps": jnp.zeros((), jnp.int32)}

    def predict(outputs, memory, rng):
        return jax.nn.log_softmax(outputs["scores"] / temperature, axis=1)

    def target(outputs, memory, rng, view):
        scores = outputs["scores"]
        blocks = [(scores, True)]
        if length := usable(queue, len(scores)):
            rows = memory["queue"][view, :length]
            past = products(rows, outputs["prototypes"].T)
            blocks.append((past, (rows[-1] != 0).any()))
        return jax.lax.stop_gradient(codes(blocks, epsilon, iterations))

    def compare(prediction, target, memory):
        return -(target * prediction).sum(axis=1)

    def remember(memory, targets):
        new = jnp.stack([outputs["embedding"] for outputs in targets])
        if not usable(queue, new.shape[1]):
            return memory
        late = memory["steps"] >= clock.steps(queue_start_epochs)
        rows = jnp.where(late, push(memory["queue"], new), memory["queue"])
        return {"queue": rows, "steps": memory["steps"] + 1}

    return Objective(init, predict, target, compare, remember)


def codes(
    blocks: Sequence[tuple[Array, Array]], epsilon: float, iterations: int
) -> Array:
    """Sinkhorn codes of the first block [B, K] float32, every row a distribution.

    blocks: (scores [N, K], whether they count), balanced together. Apart, not as one
    array: the batch stays cut over devices, and only sums over it are sent.
    """
    logits = [scores.astype(jnp.float32) / epsilon for scores, _ in blocks]
    there = [jnp.where(counts, 0.0, -jnp.inf) for _, counts in blocks]
    samples = there
    for _ in range(iterations):
        sums = [logsumexp(x + s, axis=0) for x, s in zip(logits, samples, strict=True)]
        prototypes = -logsumexp(jnp.stack(sums), axis=0)  # [K], log of the factors
        samples = [
            t - logsumexp(x + prototypes, axis=1, keepdims=True)  # [N, 1]
            for x, t in zip(logits, there, strict=True)
        ]
    return jax.nn.softmax(logits[0] + prototypes, axis=1)


def usable(queue: int, batch: int) -> int:
    """How many of the queue's rows whole batches fill."""
    return queue - queue % batch


def push(queue: Array, new: Array) -> Array:
    """Puts each view's [B, d] of [VIEWS, B, d] in front of its queue [VIEWS, K, d]."""
    older = jnp.roll(queue, new.shape[1], axis=1)
    new = jax.lax.stop_gradient(new)
    return jax.lax.dynamic_update_slice_in_dim(older, new, 0, axis=1)
