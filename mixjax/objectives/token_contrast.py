"""A contrast between the tokens of a sequence: those of the same source are positives.

Source: MixedAE (Chen et al., CVPR 2023), equation 7, in the form of a supervised
contrastive loss. Similarities are cosines over a temperature.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import check_name

Array = jax.Array
POSITIVES = ("all", "one", "prototype")


def homologous_contrast(
    features: Array,
    source: Array,
    temperature: float,
    *,
    positives: str,
    members: int,
    keys: Array | None = None,
) -> Array:
    """The loss, a scalar: mean over tokens and sequences.

    features: [G, L, d], normalised here; source: [G, L] int32 below `members`. With
    s_ab the similarity of two tokens, positives says what token a is drawn to:
      all        mean over the homologous b of logsumexp_{c != a} s_ac - s_ab;
      one        the same with one homologous b, drawn at random (keys: [G]);
      prototype  cross-entropy over the mean direction of each source, a's own being
                 the class.
    If all similarities are equal, `all` and `one` are log(L - 1) and `prototype` is
    log(members).
    """
    check_name("method.contrast.positives", positives, POSITIVES)
    features = features.astype(jnp.float32)  # exponentials of s need the precision
    features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    length = features.shape[1]
    if positives == "prototype":
        label = jax.nn.one_hot(source, members)  # [G, L, K]
        # Sums serve as means: only their direction counts.
        means = jnp.einsum("glk,gld->gkd", label, features)
        means = means / jnp.linalg.norm(means, axis=-1, keepdims=True)
        logits = jnp.einsum("gld,gkd->glk", features, means) / temperature
        return -(jax.nn.log_softmax(logits) * label).sum(axis=-1).mean()
    similarity = jnp.einsum("gad,gbd->gab", features, features) / temperature
    itself = jnp.eye(length, dtype=bool)  # [L, L]
    others = jnp.where(itself, -jnp.inf, similarity)  # [G, L, L]
    log_denominator = jax.nn.logsumexp(others, axis=-1)  # [G, L]
    same = (source[:, :, None] == source[:, None, :]) & ~itself  # [G, L, L]
    if positives == "one":
        noise = jax.vmap(lambda key: jax.random.uniform(key, (length, length)))(keys)
        # The homologous token of the largest noise; -1 is below all of them.
        noise = jnp.where(same, noise, -1.0)
        same &= noise == noise.max(axis=-1, keepdims=True)
    count = same.sum(axis=-1)  # [G, L]
    attraction = jnp.where(same, similarity, 0).sum(axis=-1) / jnp.maximum(count, 1)
    alone = count == 0  # the only token of its source has no positive
    return jnp.where(alone, 0, log_denominator - attraction).mean()  # equation 7
