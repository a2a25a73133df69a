"""W-MSE: views agree after each is whitened, so that they cannot collapse.

Source: Ermolov et al., 2021 (equations 3 to 6), and its code. In each repetition the
batch is cut at random into sub-batches of `size`, the same for both sides of a
comparison, and each is whitened by the inverse Cholesky factor of its covariance.
Gradients flow into both sides and through the factorization; there are no running
statistics. Everything is float32 in full precision.

Departure: the whitening is applied twice. In exact arithmetic the second pass changes
nothing; in float32, with a covariance of condition number 5000, it lowers the relative
error of the loss from 1e-4 to 4e-7, and that of its gradient from 7e-4 to 6e-6.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.objectives.contrast import unit
from mixjax.sharding import sub_batches
from mixjax.state import Objective

Array = jax.Array
LOSSES = ("distance", "mse")


def make(*, size: int, iterations: int, eps: float, loss: str) -> Objective:
    """size: that of a sub-batch (w); iterations: the number of draws; eps: shrinkage.

    loss: "distance", 2 - 2 cos (the paper's), or "mse", of embeddings that are not
    normalised.
    """
    if iterations < 1:
        raise UsageError(f"objective.iterations={iterations} must be at least 1.")

    def draw(rng, batch):
        permutation = lambda key: jax.random.permutation(key, batch)
        return jax.vmap(permutation)(jax.random.split(rng, iterations))

    return build(draw, size=size, eps=eps, loss=loss)


def build(orders: Callable, *, size: int, eps: float, loss: str) -> Objective:
    """The objective for orders(rng, B) -> [R, B], R permutations of the batch."""
    check_name("objective.loss", loss, LOSSES)
    if not 0 <= eps < 1:
        raise UsageError(f"objective.eps={eps} must be at least 0 and below 1.")

    def embed(outputs, memory, rng, view=None):
        x = outputs["projection"]
        check_size(size, *x.shape)
        y = whitened(x, orders(rng, len(x)), size, eps)  # [R, B, d]
        return unit(y) if loss == "distance" else y

    def compare(prediction, target, memory):
        if loss == "mse":
            return jnp.square(prediction - target).mean(axis=(0, 2))
        return 2 - 2 * (prediction * target).sum(axis=2).mean(axis=0)

    return Objective(
        init=lambda rng, outputs: {},
        predict=embed,
        target=embed,
        compare=compare,
        remember=lambda memory, targets: memory,
    )


def check_size(size: int, batch: int, width: int) -> None:
    """Raises UsageError unless sub-batches fill the batch and have full rank.

    The covariance of w rows has rank w - 1 at most, so w must exceed the width d.
    """
    if size > width and batch % size == 0:
        return
    fits = [n for n in range(width + 1, batch + 1) if batch % n == 0]
    near = sorted(sorted(fits, key=lambda n: abs(n - size))[:3])
    take = f"take {' or '.join(map(str, near))}" if fits else "take a larger batch"
    raise UsageError(
        f"objective.size={size} must divide the batch of {batch} and exceed the "
        f"{width} dimensions of an embedding; {take}."
    )


def whitened(x: Array, orders: Array, size: int, eps: float) -> Array:
    """Embeddings [B, d], permutations [R, B] -> [R, B, d], in the batch's order."""

    def whiten_in_order(order):
        inverse = jnp.argsort(order)
        parts = sub_batches.split(permute(x, order, inverse), len(order) // size)
        return permute(sub_batches.merge(whiten(parts, eps)), inverse, order)

    return jax.vmap(whiten_in_order)(orders)


def whiten(x: Array, eps: float) -> Array:
    """Sub-batches [S, w, d] -> mean 0 and covariance I in each, if eps is 0.

    With the unbiased covariance, (1 - eps) cov + eps I = L L^T: rows times L^-T.
    """
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=1, keepdims=True)
    _, w, d = x.shape
    scale = math.sqrt((1 - eps) / (w - 1))
    # The covariance with its shrinkage is rows^T rows, of these w + d rows.
    shrinkage = jnp.broadcast_to(math.sqrt(eps) * jnp.eye(d), (len(x), d, d))
    rows = jnp.concatenate([scale * x, shrinkage], axis=1)
    for _ in range(2):  # the second pass removes the rounding errors of the first
        square = jnp.einsum("swi,swj->sij", rows, rows, precision="highest")
        factor = jnp.linalg.cholesky(square)  # [S, d, d]
        rows = jax.lax.linalg.triangular_solve(
            factor, rows, left_side=False, lower=True, transpose_a=True
        )
    return rows[:, :w] / scale


@jax.custom_vjp
def permute(x: Array, order: Array, inverse: Array) -> Array:
    """x[order] along the first axis; `inverse` is the inverse permutation.

    With it the gradient is a gather as well; the scatter that JAX would derive is
    slower and, on a GPU, not reproducible.
    """
    return jnp.take(x, order, axis=0, mode="clip")


def _permute_forward(x, order, inverse):
    return jnp.take(x, order, axis=0, mode="clip"), inverse


def _permute_backward(inverse, g):
    return jnp.take(g, inverse, axis=0, mode="clip"), None, None


permute.defvjp(_permute_forward, _permute_backward)
