"""The last stage of a residual network, run on regions (Faster R-CNN's form C4).

Ren et al., "Faster R-CNN" (2015), on residual networks as detectron2 has it: the
encoder ends after its third stage, and the fourth is the head of every region. MoCo's
detection code adds one batch norm after the last block, with nothing behind it.

Rows without a region are left out of all batch statistics; their own outputs are
meaningless. Departures: none.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models.resnet import rematerialised

Array = jax.Array


class Res5(nn.Module):
    """Regions [R, P, P, D] -> {"regions": [R, P / 2, P / 2, D']} of type `dtype`.

    D' is the width of the blocks (basic) or four times that (bottleneck). Parameters
    are called as those of the fourth stage of models/resnet.py, layer4_0 and on, so
    that pre-trained ones fit.
    """

    block: str  # "basic" or "bottleneck"
    layers: int  # blocks, of which the first has stride 2
    width: int  # of the 3x3 convolutions
    extra_norm: bool
    remat: str  # "block": the backward pass recomputes the inside of each block
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.res5.block", self.block, ["basic", "bottleneck"])
        check_name("model.res5.remat", self.remat, ["none", "block"])
        if self.layers < 1:
            raise UsageError(f"model.res5.layers={self.layers} must be at least 1.")

    @nn.compact
    def __call__(
        self, outputs: dict, *, train: bool, regions: Array, valid: Array
    ) -> dict:
        """regions [R, P, P, D]; valid [R] bool, whether a row holds a region."""
        block, x = rematerialised(self.remat), regions
        weights = valid.astype(jnp.float32)[:, None, None]  # [R, 1, 1]
        for j in range(self.layers):
            settings = (
                self.block,
                self.width,
                1 if j else 2,
                False,
                self.norm,
                self.dtype,
            )
            x = block(*settings, name=f"layer4_{j}")(x, train, weights)
        if self.extra_norm:
            ones = nn.initializers.ones
            norm = self.norm(affine=True, scale_init=ones, name="norm")
            x = norm(x, train=train, weights=weights)
        return {"regions": x}
