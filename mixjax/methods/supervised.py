"""Supervised training of an encoder and a linear classifier: what features are worth.

    z    = encoder(x)
    p    = classifier(z)
    loss = cross-entropy(p, y), y smoothed and mixed                 fine-tuning
    loss = cross-entropy(p, y), the encoder as it is                 linear probing

Fine-tuning as in MAE's code (He et al., 2022, appendix A.1; DeiT's recipe): the rate
falls from layer to layer (optim.layer_decay), pictures are mixed in chunks (Mixup and
CutMix, mixtures/labelled.py). Linear probing as in MAE's (appendix A.2) and MoCo's
code: the encoder runs as in evaluation, so its batch statistics stay what they are, and
it gets no gradient; the recipe's optimizer leaves it alone (optim.lr_rules). A few
labels are a matter of data.split. Where pictures have several labels each class is a
decision of its own.

Departures: none known.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import labelled
from mixjax.objectives import classification
from mixjax.state import Aux, Method, Network, Variables

LOSSES = ("softmax", "sigmoid")


def fitting(chunk: int, batch: int) -> int:
    """The largest even chunk for a few pictures to look at, 2 at least."""
    fits = [c for c in range(2, min(chunk, batch) + 1, 2) if batch % c == 0]
    return max(fits, default=2)


def make(
    network: Network,
    *,
    trunk: str,
    loss: str,
    smoothing: float,
    mixture: Mapping,
) -> Method:
    """A classifier on top of an encoder.

    trunk: "trained" or "frozen". loss: "softmax" of one label per picture, or "sigmoid"
    of several, with neither smoothing nor mixture. mixture: the fields of
    mixtures/labelled.py, or {} for pictures as they are.
    """
    check_name("method.trunk", trunk, ["trained", "frozen"])
    check_name("method.loss", loss, LOSSES)
    if "classifier" not in network.parts:
        raise UsageError("method.name='supervised' needs a section model.classifier.")
    if not 0 <= smoothing < 1:
        raise UsageError(f"method.smoothing={smoothing} must lie in 0 .. 1.")
    several = loss == "sigmoid"
    if several and (mixture or smoothing):
        raise UsageError(
            "method.loss='sigmoid' takes pictures and labels as they are: set "
            "method.smoothing=0 and method.mixture={}."
        )
    mix = call("method.mixture", labelled.make, mixture) if mixture else None
    heads = [name for name in network.parts if name != "encoder"]

    def init(rng, batch):
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    def blend(batch, rng):
        """(pictures, their share of themselves [B] or None)."""
        images = batch["views"][0]
        if mix is None:
            return images, None
        return mix(rng, images, batch["index"])[:2]

    def classify(params, stats, images, rng):
        if trunk == "trained":
            return network.apply(params, stats, images, train=True, rng=rng)
        seen, _ = network.run(
            params, stats, {"images": images}, ("encoder",), train=False
        )
        seen = jax.lax.stop_gradient({"features": seen["features"]})
        return network.run(params, stats, seen, heads, train=True, rng=rng)

    def compare(logits, labels, lam):
        """The loss of every picture, [B]."""
        if several:
            return classification.binary_cross_entropy(logits, labels)
        target = labelled.soft(labels, logits.shape[-1], smoothing)
        if lam is not None:
            other = labelled.partners(target, mixture["chunk"])
            target = lam[:, None] * target + (1 - lam[:, None]) * other
        return classification.soft_cross_entropy(logits, target)

    def loss(params, state, batch, rng):
        keys = jax.random.split(rng)
        images, lam = blend(batch, keys[0])
        outputs, stats = classify(params, state.stats, images, keys[1])
        logits, labels = outputs["logits"], batch["label"]
        metrics = {} if lam is None else {"lam": lam.mean()}
        if not several:
            # Of mixed pictures too, each taken for the one it is named after.
            metrics["top1"] = 100 * classification.hits(logits, labels).mean()
        return compare(logits, labels, lam).mean(), Aux(stats, {}, metrics)

    def show(state, batch, rng):
        images = batch["views"][0]
        found = {"input": images}
        if mix is not None and len(images) > 1:
            chunk = fitting(mixture["chunk"], len(images))
            few = call("method.mixture", labelled.make, {**mixture, "chunk": chunk})
            mixed, _, mask = few(rng, images, batch["index"])
            mask = jnp.broadcast_to(mask, images.shape)
            found |= {"mixture": mixed, "mask": mask}
        return found

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=1 if mix is None else mixture["chunk"],
    )
