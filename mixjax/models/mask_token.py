"""Hidden tokens of encoders that see all positions, as SimMIM has them."""

import jax

Array = jax.Array


def cover(x: Array, hide: Array | None, token: Array | None) -> Array:
    """Puts `token` [1, 1, D] where `hide` [B, L] is 1 into patch tokens x [B, L, D].

    hide: 1 hides, 0 leaves, what is between mixes; None hides nothing. Both are the
    encoder's, so a missing token is a mistake of the program.
    """
    if hide is None:
        return x
    if token is None:
        raise ValueError("hide needs an encoder with mask_token=True")
    hidden = hide[..., None].astype(x.dtype)  # [B, L, 1]
    return x * (1 - hidden) + token * hidden
