"""Counted operations against formulas, and peaks by device kind."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest

from configs import masked
from mixjax import methods, models
from mixjax.optim.schedules import Clock
from mixjax.profiling import flops
from mixjax.training import initial_state


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def product(x, w):
    return jnp.sin(x @ w)


def test_products():
    assert flops.count(product, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b)
    count = flops.count(batched, shape(2, 3, 5, 8), shape(2, 3, 7, 8))
    assert count == 2 * (2 * 3) * 5 * 7 * 8
    outer = lambda a, b: jnp.einsum("i,j->ij", a, b, precision="highest")
    assert flops.count(outer, shape(4), shape(6)) == 2 * 4 * 6


def test_only_products_count():
    assert flops.count(lambda x: jnp.sort(jnp.exp(x) + x).sum(), shape(8, 8)) == 0


def convolution(x, kernel, stride=2, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).sum()


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_convolutions(stride, groups):
    """3 x 3 from 4 to 8 channels; the backward pass is twice the forward pass."""
    args = shape(2, 16, 12, 4), shape(3, 3, 4 // groups, 8)
    conv = lambda x, kernel: convolution(x, kernel, stride, groups)
    outputs = 2 * (16 // stride) * (12 // stride) * 8
    forward = 2 * outputs * 3 * 3 * 4 // groups
    assert flops.count(conv, *args) == forward
    assert flops.count(jax.grad(conv, argnums=(0, 1)), *args) == 2 * forward


def test_a_scan_counts_as_often_as_it_runs():
    def loop(x, stack):
        return jax.lax.scan(lambda x, w: (product(x, w), None), x, stack)[0].sum()

    args = shape(3, 5), shape(6, 5, 5)
    forward = 6 * 2 * 3 * 5 * 5
    assert flops.count(loop, *args) == forward
    assert flops.count(jax.grad(loop, argnums=(0, 1)), *args) == 3 * forward
    nested = lambda x, s: jax.lax.fori_loop(0, 4, lambda i, x: x + loop(x, s), x)
    assert flops.count(nested, *args) == 4 * forward


def test_rematerialised_bodies_count_and_count_again_in_the_gradient():
    args = shape(3, 5), shape(5, 5)
    plain = lambda x, w: product(product(x, w), w).sum()
    again = jax.checkpoint(plain)
    forward = 2 * 2 * 3 * 5 * 5
    assert flops.count(plain, *args) == flops.count(again, *args) == forward
    both = lambda f: flops.count(jax.value_and_grad(f, argnums=(0, 1)), *args)
    assert (both(plain), both(again)) == (3 * forward, 4 * forward)


def test_functions_inside_functions_are_looked_into():
    square = jax.custom_vjp(lambda x: jax.jit(product)(x, x))
    square.defvjp(lambda x: (square(x), x), lambda x, g: (g @ x,))
    assert flops.count(jax.jit(square), shape(4, 4)) == 2 * 4**3


def test_of_two_branches_the_dearest_counts():
    either = lambda yes, x: jax.lax.cond(yes, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert flops.count(either, shape(dtype=jnp.bool_), shape(4, 4)) == 2 * 2 * 4**3


def test_what_no_result_needs_does_not_count():
    def unused(x, w):
        jnp.dot(x, w)
        return x + 1

    assert flops.count(unused, shape(4, 4), shape(4, 4)) == 0


def expected(width, depth, length, seen, patch_numbers):
    """(patch embedding, all the rest) of MAE, forward, by the spec's formulas."""
    blocks = lambda n, d: 24 * n * d**2 + 4 * n**2 * d
    embed = 2 * length * patch_numbers * width
    rest = depth * blocks(1 + seen, width) + 2 * (1 + seen) * width * 512
    rest += 8 * blocks(1 + length, 512) + 2 * length * 512 * patch_numbers
    return embed, rest


@pytest.mark.parametrize(
    "size, width, table", [("S", 384, (13.01, 38.92)), ("B", 768, (19.56, 58.46))]
)
def test_a_training_step_of_mae(size, width, table):
    """The gradient is twice the forward pass, but for the patch embedding: once."""
    config = masked.imagenet(size, 16, 800)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1, 1))
    batch = {"views": (shape(1, 224, 224, 3),), "index": shape(1, dtype=jnp.int32)}
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def loss(params, variables, batch):
        state = initial_state.first_state(variables, optax.identity())
        return method.loss(params, state, batch, jax.random.key(0))[0]

    embed, rest = expected(width, 12, 196, 49, 768)
    args = variables.params, variables, batch
    forward, whole = flops.count(loss, *args), flops.count(jax.grad(loss), *args)
    assert forward == embed + rest
    assert whole == 2 * embed + 3 * rest
    assert (forward / 1e9, whole / 1e9) == pytest.approx(table, abs=0.01)


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v4", 275),
    ],
)
def test_known_peaks(kind, tera):
    assert flops.peak(SimpleNamespace(device_kind=kind)) == tera * 1e12


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA L40S", "NVIDIA H100 NVL", "TPU v4 lite", "TPU v55"]
    + ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""],
)
def test_unknown_peaks(kind):
    assert flops.peak(SimpleNamespace(device_kind=kind)) is None
