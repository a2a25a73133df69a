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
from mixjax.state import Clock
from mixjax.state import Objective

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

    Its length is rounded down to a multiple of the batch, so one shorter than the
    batch is none. It fills from `queue_start_epochs` on and counts once it is full.
    """
    for name, value, least in (("queue", queue, 0), ("iterations", iterations, 1)):
        if value < least:
            raise UsageError(f"objective.{name}={value} must be at least {least}.")

    def init(rng, outputs):
        batch, width = outputs["embedding"].shape
        length = queue - queue % batch
        if not length:
            return {}
        empty = jnp.zeros((VIEWS, length, width), jnp.float32)
        return {"queue": empty, "steps": jnp.zeros((), jnp.int32)}

    def predict(outputs, memory, rng):
        return jax.nn.log_softmax(outputs["scores"] / temperature, axis=1)

    def target(outputs, memory, rng, view):
        blocks = [(outputs["scores"], True)]
        if memory:
            rows = memory["queue"][view]
            scores = products(rows, outputs["prototypes"].T)
            blocks.append((scores, (rows[-1] != 0).any()))
        return jax.lax.stop_gradient(codes(blocks, epsilon, iterations))

    def compare(prediction, target, memory):
        return -(target * prediction).sum(axis=1)

    def remember(memory, targets):
        if not memory:
            return memory
        new = push(memory["queue"], [outputs["embedding"] for outputs in targets])
        late = memory["steps"] >= clock.steps(queue_start_epochs)
        rows = jnp.where(late, new, memory["queue"])
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


def push(queue: Array, embeddings: Sequence[Array]) -> Array:
    """Puts each view's [B, d] in front of its queue; the oldest of [VIEWS, K, d] go."""
    new = jax.lax.stop_gradient(jnp.stack(embeddings)).astype(queue.dtype)
    return jnp.concatenate([new, queue[:, : -new.shape[1]]], axis=1)
