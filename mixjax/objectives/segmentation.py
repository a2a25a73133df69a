"""The loss of semantic segmentation, with both ways to count ignored pixels.

mmsegmentation divides by all pixels, so that an image of which less is labelled weighs
less; torch and others divide by those that count.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import check_name

Array = jax.Array


def segmentation_cross_entropy(
    logits: Array, labels: Array, *, ignore: int, over: str
) -> Array:
    """Softmax cross-entropy of every pixel -> its mean, [] float32.

    logits: [B, h, w, K], enlarged to the labels first, bilinear between half-pixel
    centres. labels: [B, H, W] whole numbers, of which `ignore` gives no loss. over:
    "all", the mean is that over all pixels, or "valid", over those not ignored (0 if
    there is none). UsageError for another word.
    """
    check_name("over", over, ["all", "valid"])
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    if logits.shape[:-1] != labels.shape:
        shape = (*labels.shape, classes)
        logits = jax.image.resize(logits, shape, "linear", antialias=False)
    own = labels.astype(jnp.int32)[..., None] == jnp.arange(classes)
    # A sum over classes, since the gradient of taking one from them is a scatter.
    taken = jnp.where(own, logits, 0.0).sum(axis=-1)  # [B, H, W]
    each = jax.nn.logsumexp(logits, axis=-1) - taken
    valid = labels != ignore
    total = jnp.where(valid, each, 0.0).sum()
    return total / (labels.size if over == "all" else jnp.maximum(valid.sum(), 1))
