"""SwAV: from one view, predict the code that the prototypes give to the other view.

Source: Caron et al., 2020 (equations 2 to 5, appendix A), and its code for the queue.
Codes are the scores of unit embeddings with unit prototypes, balanced over prototypes
and samples by Sinkhorn-Knopp; they get no gradient. For each assigning view, a queue of
embeddings of earlier steps, newest first, takes part in the balancing, scored with the
prototypes of this step.

Departure: the scaling works on logarithms, where the code takes exp(score / epsilon)
and can overflow; the result is the same.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from mixjax.errors import UsageError
from mixjax.objectives.contrast import products
from mixjax.state import Clock, Objective

Array = jax.Array
VIEWS = 2  # the views that assign codes, the large crops


def make(
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    queue: int,
    queue_start_epochs: float,
    clock: Clock,
) -> Objective:
    """queue: the number of embeddings kept per assigning view, 0 for none.

    Only rows that whole batches fill are used, so none if the batch is larger than the
    queue. It fills from `queue_start_epochs` on and takes part once it is full.
    """
    check_ranges(queue, iterations)

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
            past = products(rows, outputs["prototypes"].T)  # [K, prototypes]
            # The oldest row is written last, so the queue is full if it is not zero.
            blocks.append((past, (rows[-1] != 0).any()))
        return jax.lax.stop_gradient(codes(blocks, epsilon, iterations))

    def compare(prediction, target, memory):
        return -(target * prediction).sum(axis=1)  # equation 2

    def remember(memory, targets):
        new = jnp.stack([outputs["embedding"] for outputs in targets])
        if not usable(queue, new.shape[1]):
            return memory
        fills = memory["steps"] >= clock.steps(queue_start_epochs)
        rows = jnp.where(fills, push(memory["queue"], new), memory["queue"])
        return {"queue": rows, "steps": memory["steps"] + 1}

    return Objective(init, predict, target, compare, remember)


def check_ranges(queue: int, iterations: int) -> None:
    """UsageError if a field is below its least value."""
    for name, value, least in (("queue", queue, 0), ("iterations", iterations, 1)):
        if value < least:
            raise UsageError(f"objective.{name}={value} must be at least {least}.")


def codes(
    blocks: Sequence[tuple[Array, Array]], epsilon: float, iterations: int
) -> Array:
    """Sinkhorn codes of the first block [B, K] float32, every row a distribution.

    blocks: (scores [N, K], whether they count), balanced together. They stay separate
    arrays: the batch remains sharded, and only its sums travel between devices.
    """
    logits = [scores.astype(jnp.float32) / epsilon for scores, _ in blocks]
    # Logarithms of the factors 1 or 0: a block that does not count adds nothing.
    counted = [jnp.where(counts, 0.0, -jnp.inf) for _, counts in blocks]
    samples = counted  # [N, 1] after the first pass, log of v in equation 5
    for _ in range(iterations):
        sums = [logsumexp(x + s, axis=0) for x, s in zip(logits, samples, strict=True)]
        prototypes = -logsumexp(jnp.stack(sums), axis=0)  # [K], log of u in equation 5
        samples = [
            c - logsumexp(x + prototypes, axis=1, keepdims=True)  # [N, 1]
            for x, c in zip(logits, counted, strict=True)
        ]
    return jax.nn.softmax(logits[0] + prototypes, axis=1)


def usable(queue: int, batch: int) -> int:
    """The number of the queue's rows that whole batches fill."""
    return queue - queue % batch


def push(queue: Array, new: Array) -> Array:
    """Puts the new rows [VIEWS, B, d] in front of the queues [VIEWS, K, d].

    The oldest B rows drop out.
    """
    older = jnp.roll(queue, new.shape[1], axis=1)
    new = jax.lax.stop_gradient(new)
    return jax.lax.dynamic_update_slice_in_dim(older, new, 0, axis=1)
