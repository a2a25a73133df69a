"""W-MSE: views agree after each is whitened, so that they cannot collapse.

Source: Ermolov et al., 2021 (equations 3 to 6), and its code. In each repetition the
batch is cut at random into sub-batches of `size`, the same for both sides of a
comparison, and each is whitened by the inverse Cholesky factor of its covariance. Both
sides get the gradient, through the factorization too; there are no running statistics.
Everything is float32 in full precision.

Departure: the whitening is done twice over. In exact numbers the second changes
nothing; in float32 a covariance of condition 5000 costs the loss a relative 1e-4 the
first time and 4e-7 the second, its gradient 7e-4 and 6e-6.
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
    """size: of a sub-batch (w); iterations: how often it is drawn; eps: shrinkage.

    loss: "distance", 2 - 2 cos (the paper's), or "mse", over unnormalised numbers.
    """
    if iterations < 1:
        raise UsageError(f"objective.iterations={iterations} must be at least 1.")

    def draw(rng, batch):
        permutation = lambda key: jax.random.permutation(key, batch)
        return jax.vmap(permutation)(jax.random.split(rng, iterations))

    return build(draw, size=size, eps=eps, loss=loss)


def build(orders: Callable, *, size: int, eps: float, loss: str) -> Objective:
    """The objective, given orders(rng, B) -> permutations of the batch [R, B]."""
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
    """Raises UsageError unless sub-batches fill the batch and have full rank."""
    if size > width and batch % size == 0:
        return
    fits = [n for n in range(width + 1, batch + 1) if batch % n == 0]
    near = sorted(sorted(fits, key=lambda n: abs(n - size))[:3])
    take = f"take {' or '.join(map(str, near))}" if fits else "take a larger batch"
    raise UsageError(
        f"objective.size={size} must divide the batch of {batch} and exceed the "
        f"{width} numbers of an embedding; {take}."
    )


def whitened(x: Array, orders: Array, size: int, eps: float) -> Array:
    """Embeddings [B, d], permutations [R, B] -> [R, B, d], in the batch's order."""

    def once(order):
        back = jnp.argsort(order)
        parts = sub_batches.split(permute(x, order, back), len(order) // size)
        return permute(sub_batches.merge(whiten(parts, eps)), back, order)

    return jax.vmap(once)(orders)


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
    for _ in range(2):  # the second takes away what rounding left of the covariance
        square = jnp.einsum("swi,swj->sij", rows, rows, precision="highest")
        factor = jnp.linalg.cholesky(square)  # [S, d, d]
        rows = jax.lax.linalg.triangular_solve(
            factor, rows, left_side=False, lower=True, transpose_a=True
        )
    return rows[:, :w] / scale


@jax.custom_vjp
def permute(x: Array, order: Array, inverse: Array) -> Array:
    """x[order]; with the inverse the gradient is a gather too, where it would be a
    scatter, slower and on a GPU not reproducible."""
    return jnp.take(x, order, axis=0, mode="clip")


def _permute_forward(x, order, inverse):
    return jnp.take(x, order, axis=0, mode="clip"), inverse


def _permute_backward(inverse, g):
    return jnp.take(g, inverse, axis=0, mode="clip"), None, None


permute.defvjp(_permute_forward, _permute_backward)
