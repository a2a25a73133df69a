"""CLUB's variational network: predicts a Gaussian over latents from inputs."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.models.linear import dense
from mixjax.models.vit import gelu

Array = jax.Array


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU with slope 0.01 below zero."""
    return nn.leaky_relu(x, 0.01)


MEANS = {"leaky_relu": leaky_relu, "identity": lambda x: x}
VARIANCES = {"relu_floor": nn.relu, "softplus": nn.softplus}


class Variational(nn.Module):
    """Inputs [..., Dx] -> mean and variance [..., D] of q(z|x) (MI-MAE, section 4.2).

    Two branches of three linear layers each, with a GELU after the first; `hidden` is
    their width, 0 for the latent's. The mean ends in `mean_act`, a leaky ReLU in the
    paper, and the variance in `variance_act` plus `floor`. With the paper's ReLU alone
    the variance could be 0 and its logarithm infinite. The variance's last bias starts
    at 1. Everything is float32, because likelihoods are differences of large numbers.
    """

    hidden: int
    mean_act: str
    variance_act: str
    floor: float

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool, read: Callable) -> dict:
        """read: outputs so far -> (x [..., Dx], D)."""
        check_name("model.variational.mean_act", self.mean_act, MEANS)
        check_name("model.variational.variance_act", self.variance_act, VARIANCES)
        x, width = read(inputs)
        mean = Branch(self.hidden or width, width, 0.0, name="mu")(x)
        variance = Branch(self.hidden or width, width, 1.0, name="var")(x)
        return {
            "mean": MEANS[self.mean_act](mean),
            "variance": VARIANCES[self.variance_act](variance) + self.floor,
        }


class Branch(nn.Module):
    """[..., Dx] -> [..., width]; `bias` is the initial value of the last bias."""

    hidden: int
    width: int
    bias: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = gelu(dense(self.hidden, jnp.float32, "fc1")(x.astype(jnp.float32)))
        x = dense(self.hidden, jnp.float32, "fc2")(x)
        start = nn.initializers.constant(self.bias)
        return dense(self.width, jnp.float32, "fc3", bias_init=start)(x)
