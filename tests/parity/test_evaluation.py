"""Supervised mixtures against timm, and mCE against worked examples."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.evals import imagenet_c
from mixjax.methods.supervised import soft
from mixjax.mixtures import mixup_cutmix
from mixjax.objectives import classification
from tests.parity.conftest import FOLDER
from tests.parity.torch_names import images

MODES = ("batch", "pair", "elem")


def drawn(ref, kind: str, mode: str) -> mixup_cutmix.Draw:
    """The file's draw for every picture [B]."""
    count = len(ref["in/labels"])
    if mode == "batch":
        lam = ref["in/mixup_lam" if kind == "mixup" else "in/cutmix_lam_raw"]
        lam = np.full((1, 1), lam)
        centre = ref["in/cutmix_center_yx"][None, None]
    else:
        draws = count // 2 if mode == "pair" else count
        lam = ref["in/elem_lam_raw"][None, :draws]
        centre = np.stack([ref["in/elem_center_y"], ref["in/elem_center_x"]], axis=-1)
        centre = centre[None, :draws]
    lam, centre = jnp.asarray(lam, jnp.float32), jnp.asarray(centre, jnp.int32)
    one = mixup_cutmix.Draw(jnp.full(lam.shape, kind == "cutmix"), lam, centre)
    return mixup_cutmix.spread(one, mode, count)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixup_cutmix(reference, kind, mode):
    ref = reference("mixup_cutmix")
    labels, classes = jnp.asarray(ref["in/labels"]), ref["hp/num_classes"]
    x, count = images(ref["in/x"]), len(labels)
    mixed, lam, _ = jax.jit(mixup_cutmix.mix, static_argnums=2)(
        x, drawn(ref, kind, mode), count
    )
    case = f"{kind}_{mode}"
    ref.check(f"{case}/x", np.asarray(mixed).transpose(0, 3, 1, 2))
    if kind == "cutmix":
        expected = np.asarray(ref[f"out/{case}/lam"]).reshape(-1)
        got = np.asarray(lam)[: len(expected)]
        np.testing.assert_allclose(got, expected, atol=ref[f"tol/{case}/lam"])

    def loss(logits):
        target = soft(labels, classes, ref["hp/label_smoothing"])
        share = lam[:, None]
        target = share * target + (1 - share) * mixup_cutmix.partners(target, count)
        return classification.soft_cross_entropy(logits, target).mean(), target

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, target), grad = both(jnp.asarray(ref["in/logits"]))
    ref.check(f"{case}/target", target)
    ref.check(f"{case}/soft_ce", value)
    ref.check(f"{case}/grad_logits", grad)


def test_label_smoothing(reference):
    ref = reference("mixup_cutmix")
    target = soft(
        jnp.asarray(ref["in/labels"]), ref["hp/num_classes"], ref["hp/label_smoothing"]
    )
    loss = lambda x: classification.soft_cross_entropy(x, target).mean()
    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(ref["in/logits"]))
    ref.check("label_smoothing_ce", value)
    ref.check("label_smoothing_ce_grad", grad)


def test_mce():
    file = json.loads((FOLDER / "imagenet_c_mce.json").read_text())
    assert file["alexnet_error"] == imagenet_c.ALEXNET
    assert sorted(file["corruptions"]) == sorted(imagenet_c.ALEXNET)
    assert len(file["examples"]) > 1
    for example in file["examples"]:
        accuracy = example["accuracy_per_severity_1_to_5"]
        errors = {k: 1 - np.array(v) for k, v in accuracy.items()}
        each = imagenet_c.corruption_errors(errors)
        for name, expected in example["ce_percent"].items():
            np.testing.assert_allclose(each[name], expected, rtol=1e-6)
        np.testing.assert_allclose(
            imagenet_c.mce(errors), example["mce_percent"], rtol=1e-6
        )
