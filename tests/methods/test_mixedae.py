"""MixedAE: which keys are seen, which tokens are scored, and its switches (spec traps
3, 6, 7)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, models
from mixjax.errors import UsageError
from mixjax.methods import mixedae
from mixjax.mixtures import homologous, tokens
from mixjax.mixtures.tokens import Masking
from mixjax.objectives import pixels
from mixjax.optim.schedules import Clock
from mixjax.sharding import sub_batches
from mixjax.state import TrainState, example_keys
from tests.support import tiny

MEMBERS, PATCH = 4, 4
PLAIN = {"segment": False, "contrast": None}


@functools.cache
def setting():
    """(network, parameters, images [8, H, W, C], sources [2, L])."""
    config = tiny.masked("mixedae")
    network = models.make(config.model)
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 1))
    params, _ = jax.jit(network.init)(jax.random.key(0), images)
    keys = example_keys(jax.random.key(2), jnp.arange(2))
    source = homologous.random_sources(keys, (4, 4), 2, MEMBERS, "random_image")
    return network, params, images, source


def encode_mixed(images, attend, topk=None, **options):
    network, params, _, source = setting()
    grouped = sub_batches.split(images, 2)
    task = mixedae.build_mixed_task(
        grouped, source, PATCH, attend=attend, topk=topk, **PLAIN | options
    )
    outputs, _ = network.apply(params, {}, task.images, train=True, **task.inputs)
    return outputs, task


def shown_patches(source):
    """The Masking that keeps, of every image, the patches that the mixture shows."""
    shown = source[:, None] == jnp.arange(MEMBERS)[None, :, None]
    shown = shown.reshape(-1, source.shape[1])
    shuffle = jnp.argsort(~shown, axis=1, stable=True)
    return Masking(shuffle, jnp.argsort(shuffle, axis=1), shown.astype(jnp.float32))


def test_masked_attention_is_mae_on_each_image():
    network, params, images, source = setting()
    outputs = jax.jit(lambda x: encode_mixed(x, "masked_sa")[0])(images)
    masking, visible = shown_patches(source), source.shape[1] // MEMBERS
    plain, _ = network.apply(
        params,
        {},
        images,
        train=True,
        encoder={"select": lambda x: tokens.keep(x, masking, visible)},
        decoder={"restore": lambda x, fill: tokens.unshuffle(x, fill, masking)},
    )
    np.testing.assert_allclose(outputs["prediction"], plain["prediction"], atol=1e-5)


@pytest.mark.parametrize("attend", mixedae.ATTENTION)
def test_what_leaks_from_image_to_image(attend):
    """Exactly nothing with masked self-attention; with any other it does (trap 6)."""
    *_, images, source = setting()
    topk = mixedae.TopK(4, 0, "keep")

    def of_first(images):
        outputs, _ = encode_mixed(images, attend, topk)
        tokens = outputs["tokens"][0, -source.shape[1] :]
        return jnp.square(jnp.where(source[0, :, None] == 0, tokens, 0)).sum()

    gradient = jax.jit(jax.grad(of_first))(images)
    assert np.abs(gradient[0]).max() > 0
    assert (np.abs(gradient[1:4]).max() > 0) == (attend != "masked_sa")
    np.testing.assert_array_equal(gradient[4:], 0)  # the other group


def test_all_keys_is_global_attention_to_the_bit():
    *_, images, source = setting()
    every = mixedae.TopK(source.shape[1], 0, "keep")
    topk = jax.jit(lambda x: encode_mixed(x, "homologous", every)[0])(images)
    plain = jax.jit(lambda x: encode_mixed(x, "global")[0])(images)
    np.testing.assert_array_equal(topk["tokens"], plain["tokens"])


def test_few_keys_is_another_attention_from_its_first_layer_on():
    *_, images, _ = setting()
    plain, _ = encode_mixed(images, "global")
    for start, same in ((0, False), (1, False), (2, True)):
        topk, _ = encode_mixed(images, "homologous", mixedae.TopK(4, start, "keep"))
        equal = np.allclose(topk["tokens"], plain["tokens"], atol=1e-5)
        assert equal == same


def test_codes_tell_images_apart():
    """At every layer, and only the tokens of a source by their code."""
    *_, images, _ = setting()
    without, _ = encode_mixed(images, "global")
    coded, _ = encode_mixed(images, "global", segment=True)
    assert not np.allclose(without["tokens"], coded["tokens"], atol=1e-3)


def batch_of(images):
    return {"views": (images,), "index": jnp.arange(len(images))}


def made(variants="", **changes):
    config = tiny.masked("mixedae", variants, **changes)
    network = models.make(config.model)
    return methods.make(config.method, network, clock=Clock(10, 10))


def state_of(method, images):
    variables = jax.jit(method.init)(jax.random.key(0), batch_of(images))
    return TrainState(step=jnp.int32(0), opt_state={}, **variables._asdict())


def test_no_image_is_scored_on_what_it_gave():
    """Trap 3: the gradient is exactly 0 on the tokens that the encoder saw."""
    *_, images, source = setting()
    task = mixedae.build_mixed_task(
        sub_batches.split(images, 2), source, PATCH, attend="global", topk=None, **PLAIN
    )
    target = pixels.patchify(images, PATCH)
    grad = jax.grad(pixels.masked_mse)(0 * target, target, task.kept)
    shown = np.asarray(shown_patches(source).kept)
    np.testing.assert_array_equal(task.kept, shown)
    np.testing.assert_array_equal(grad[shown == 1], 0)
    assert (np.abs(grad[shown == 0]).sum(axis=-1) > 0).all()


def test_metrics_name_layers_and_chance():
    *_, images, _ = setting()
    method = made("start=1")
    state = state_of(method, images)
    _, aux = method.loss(state.params, state, batch_of(images), jax.random.key(0))
    assert {"topk/layer_01", "topk/chance", "loss_recon"} <= aux.metrics.keys()
    assert "topk/layer_00" not in aux.metrics
    assert aux.metrics["topk/chance"] == 0.25


def test_features_with_the_code_of_the_first_image():
    *_, images, _ = setting()
    plain, coded = made(), made(method__transfer_segment="zero_id")
    state = state_of(plain, images)
    a, b = plain.features(state, images), coded.features(state, images)
    assert a.shape == b.shape and not np.allclose(a, b)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method__r": 0.3}, "method.r=0.3 is not 1/K"),
        ({"method__attend": "homologus"}, "method.attend.*'homologous'"),
        ({"method__mask_patch": 6}, "method.mask_patch=6 is not a multiple of .*=4"),
        ({"method__topk__class_key": "kept"}, "method.topk.class_key.*'keep'"),
        ({"method__contrast__position": "encodr"}, "contrast.position.*'encoder'"),
        ({"method__contrast__positives": "al"}, "contrast.positives.*'all'"),
        ({"method__recon": False, "method__homocon": False}, "both off"),
    ],
)
def test_wrong_switches(changes, message):
    with pytest.raises(UsageError, match=message):
        made(**changes)


def test_contrast_at_a_layer_that_is_not_there():
    method = made(method__contrast__position="2")
    with pytest.raises(UsageError, match="no layer 2 to watch .* is 1"):
        jax.eval_shape(method.init, jax.random.key(0), batch_of(setting()[2]))


def test_contrast_needs_a_projector():
    config = tiny.masked("mixedae", "homocon=0")
    config.method.homocon = True
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(10, 10))
    with pytest.raises(UsageError, match="needs a section model.token_projector"):
        jax.eval_shape(method.init, jax.random.key(0), batch_of(setting()[2]))
