"""Mask tokens for encoders that process every position, as in SimMIM."""

import jax

Array = jax.Array


def cover(x: Array, hide: Array | None, token: Array | None) -> Array:
    """Replaces the hidden ones of the patch tokens x [B, L, D] by the mask token.

    hide: [B, L], 1 for a hidden token and 0 for a visible one; values in between
        interpolate. None hides nothing.
    token: [1, 1, D], or None if the encoder has no mask token.

    Raises ValueError if tokens are to be hidden without a mask token.
    """
    if hide is None:
        return x
    # A ValueError and not a UsageError: no config leads here, only a wrong call.
    if token is None:
        raise ValueError("hide needs an encoder with mask_token=True")
    weight = hide[..., None].astype(x.dtype)  # [B, L, 1]
    return x * (1 - weight) + token * weight
