"""A siamese network so small that its steps can be followed by hand."""

import jax.numpy as jnp

from mixjax.state import Geometry, Network


def network(image_size=(16, 16), channels=3, width=16) -> Network:
    """features: the image, flat as torch has it; projection: one linear layer of it."""

    def init(rng, images, **inputs):
        size = images[0].size
        return {"encoder": {}, "projector": layer(jnp.zeros((size, width)))}, {}

    def layer(kernel):
        return {"fc1": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}}

    def run(params, stats, outputs, parts, *, train, rng=None, **inputs):
        if "encoder" in parts:
            flat = outputs["images"].transpose(0, 3, 1, 2)
            outputs = outputs | {"features": flat.reshape(len(flat), -1)}
        if "projector" in parts:
            fc = params["projector"]["fc1"]
            projection = outputs["features"] @ fc["kernel"] + fc["bias"]
            outputs = outputs | {"projection": projection}
        return outputs, stats

    def apply(params, stats, images, **how):
        return run(params, stats, {"images": images}, ("encoder", "projector"), **how)

    return Network(
        init,
        apply,
        run,
        ("encoder", "projector"),
        lambda params, stats, x: apply(params, stats, x, train=False)[0],
        lambda params, stats, x: apply(params, stats, x, train=False)[0]["features"],
        Geometry(image_size, channels, 16, (1, 1), True),
    )
