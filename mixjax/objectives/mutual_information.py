"""Losses on mutual information: between latents, and between latents and inputs.

Source: MI-MAE (section 4.2): the InfoNCE of equations 7 and 8 between views, and the
CLUB upper bound (Cheng et al., 2020) of equations 9 and 10 with its variational network
q(z|x) = Normal(z; mean(x), diag variance(x)). Everything is float32.

z: [B, N, D], one latent per view; mean, variance: [B, N, D], those that q predicts from
the input of each view.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.sharding import sub_batches

Array = jax.Array
MIN_NEGATIVES = ("views", "batch")
REDUCE = {"sum": jnp.sum, "mean": jnp.mean}


def info_nce_views(z: Array, temperature: float, parts: int = 1) -> Array:
    """Equations 7 and 8: z [B, N, D] -> a scalar.

    For views i != k of one image, logsumexp_{c != i} s_ic - s_ik, where c runs over all
    views of all images, other views of the image included; summed, divided by N^2 (not
    by the number of terms, N (N - 1)), and averaged over images. s is the cosine /
    temperature. parts: the number of local batches, each with negatives of its own; 1
    for the whole batch. UsageError if it does not divide B.
    """
    b, n, d = z.shape
    if parts < 1 or b % parts:
        fits = [p for p in range(1, b + 1) if b % p == 0]
        near = min(fits, key=lambda p: abs(p - parts))
        raise UsageError(
            f"method.information.parts={parts} does not divide a batch of {b} images; "
            f"the nearest that does is {near}."
        )
    z = z.astype(jnp.float32)
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    z = sub_batches.split(z.reshape(b * n, d), parts)  # [G, B N / G, D]
    similarity = jnp.einsum("gad,gbd->gab", z, z) / temperature
    itself = jnp.eye(z.shape[1], dtype=bool)
    # [G, B N / G], equation 7's denominator
    log_denominator = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, similarity), axis=-1)
    image = jnp.arange(z.shape[1]) // n  # views of an image are consecutive
    pair = (image[:, None] == image[None, :]) & ~itself  # [B N / G, B N / G]
    # Subtract within each pair: the difference of two large sums would lose precision.
    terms = jnp.where(pair, log_denominator[..., None] - similarity, 0).sum()
    return terms / (n * n * b)  # equation 8


def negative_log_likelihood(z: Array, mean: Array, variance: Array, reduce: str):
    """Equation 9: the mean over views of -log q(z|x), a scalar.

    The full log-density, with the factor 1/2 and log 2 pi. reduce: "sum" or "mean" over
    the D dimensions of a latent.
    """
    terms = jnp.square(z - mean) / variance + jnp.log(variance) + math.log(2 * math.pi)
    return 0.5 * REDUCE[reduce](terms, axis=-1).mean()


def club(z: Array, mean: Array, variance: Array, negatives: str, reduce: str) -> Array:
    """Equation 10: log q(z_j|x_j) - mean_k log q(z_k|x_j), averaged over views.

    negatives: what k runs over, j included: the "views" of the same image, or those of
    the whole "batch". The logarithm of the variance and the constants are the same in
    both terms and cancel. reduce: as in negative_log_likelihood.
    """
    axes = (1,) if negatives == "views" else (0, 1)
    # mean_k (z_k - m)^2 is the variance of the z_k plus (their centre - m)^2, which
    # needs no pairs of latents. Taking the centre relative to one latent makes the loss
    # of equal latents exactly 0.
    pivot = z[:, :1] if negatives == "views" else z[:1, :1]
    centre = pivot + (z - pivot).mean(axis=axes, keepdims=True)
    spread = jnp.square(z - centre).mean(axis=axes, keepdims=True)
    # (centre - m)^2 - (z - m)^2, factored so that no two large squares are subtracted
    shift = centre - z  # [B, N, D]
    terms = (spread + shift * (shift + 2 * (z - mean))) / variance
    return 0.5 * REDUCE[reduce](terms, axis=-1).mean()


class Information(NamedTuple):
    """lam1 L_rec + gate (lam2 L_max + lam3 L_min) + approx L_approx (algorithm 1)."""

    lam1: float
    lam2: float
    lam3: float
    approx: float  # 1, or 0 for a variational network that is not trained
    temperature: float  # of L_max
    parts: int  # local batches of L_max, see info_nce_views; 1: the whole batch
    negatives: str  # of L_min, see club
    reduce: str  # over the dimensions of a latent: "sum", "mean"

    def check(self) -> "Information":
        """Returns itself; UsageError for an unknown `negatives` or `reduce`."""
        check_name("method.information.negatives", self.negatives, MIN_NEGATIVES)
        check_name("method.information.reduce", self.reduce, REDUCE)
        return self

    @property
    def used(self) -> bool:
        """Whether any term beside L_rec has a weight."""
        return bool(self.lam2 or self.lam3 or self.approx)

    def terms(self, z: Array, mean: Array, variance: Array) -> dict[str, Array]:
        """The three losses of the latents z [B, N, D], each a scalar.

        loss_max and loss_min send gradients into z alone, and so train the encoder;
        loss_approx sends them into mean and variance alone, and so trains V.
        """
        stop = jax.lax.stop_gradient
        z = z.astype(jnp.float32)
        return {
            "loss_max": info_nce_views(z, self.temperature, self.parts),
            "loss_min": club(
                z, stop(mean), stop(variance), self.negatives, self.reduce
            ),
            "loss_approx": negative_log_likelihood(
                stop(z), mean, variance, self.reduce
            ),
        }

    def total(self, terms: dict[str, Array], gate: Array) -> Array:
        """The weighted sum of `terms` without L_rec; gate: 1 or 0."""
        gated = self.lam2 * terms["loss_max"] + self.lam3 * terms["loss_min"]
        # The variational network is trained behind a closed gate too.
        return gate * gated + self.approx * terms["loss_approx"]


class Gate(NamedTuple):
    """When L_max and L_min join (section 4.2: once L_rec is below a level).

    mode: "latch" opens for good once a moving average of L_rec is below `level`;
    "instant" is open in the steps whose own L_rec is; "open" always is.
    """

    mode: str
    level: float
    decay: float  # of the moving average

    def check(self):
        """Returns itself; UsageError for an unknown mode."""
        check_name("method.gate.mode", self.mode, ["latch", "instant", "open"])
        return self

    def factor(self, memory: dict, loss: Array) -> Array:
        """1 or 0, float32, for a step whose reconstruction loss is `loss`."""
        if self.mode == "open":
            return jnp.ones((), jnp.float32)
        if self.mode == "instant":
            return (loss < self.level).astype(jnp.float32)
        return memory["open"]

    def after(self, memory: dict, loss: Array) -> dict:
        """The memory {"average", "steps", "open"} after a step of this loss.

        The average starts at 0 and is corrected for it, as Adam's moments are.
        """
        steps = memory["steps"] + 1
        average = self.decay * memory["average"] + (1 - self.decay) * loss
        below = average / (1 - self.decay**steps) < self.level
        is_open = jnp.maximum(memory["open"], below.astype(jnp.float32))
        return {"average": average, "steps": steps, "open": is_open}


def closed_gate() -> dict:
    """The memory of a gate before the first step."""
    zero = jnp.zeros((), jnp.float32)
    return {"average": zero, "steps": zero, "open": zero}
