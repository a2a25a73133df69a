"""The loss of semantic segmentation, with both ways of counting ignored pixels.

mmsegmentation divides by the number of all pixels, so that an image with fewer labelled
pixels weighs less; torch and others divide by the number of labelled pixels.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import check_name

Array = jax.Array


def segmentation_cross_entropy(
    logits: Array, labels: Array, *, ignore: int, over: str
) -> Array:
    """The mean softmax cross-entropy of all pixels, [] float32.

    logits: [B, h, w, K], first resized to the labels, bilinear between half-pixel
    centres. labels: [B, H, W] integers; pixels labelled `ignore` add no loss. over:
    "all" divides by the number of all pixels, "valid" by the number of those that are
    not ignored (the loss is 0 if there are none); UsageError for any other word.
    """
    check_name("over", over, ["all", "valid"])
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    if logits.shape[:-1] != labels.shape:
        shape = (*labels.shape, classes)
        logits = jax.image.resize(logits, shape, "linear", antialias=False)
    is_label = labels.astype(jnp.int32)[..., None] == jnp.arange(classes)
    # A masked sum over classes: the gradient of indexing would be a scatter.
    label_logit = jnp.where(is_label, logits, 0.0).sum(axis=-1)  # [B, H, W]
    each = jax.nn.logsumexp(logits, axis=-1) - label_logit
    valid = labels != ignore
    total = jnp.where(valid, each, 0.0).sum()
    return total / (labels.size if over == "all" else jnp.maximum(valid.sum(), 1))
