"""MixedAE against the reference numbers, in every variant of the file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.methods import mixedae
from mixjax.mixtures import homologous
from mixjax.models import positions
from mixjax.objectives import pixels
from mixjax.objectives.token_contrast import homologous_contrast
from tests.parity.conftest import FOLDER
from tests.parity.masked import decoder, encoder
from tests.parity.torch_names import at, images, to_tree


def variants():
    with np.load(FOLDER / "mixedae.npz", allow_pickle=False) as file:
        return sorted({k.split("/")[1] for k in file.files if k.endswith("/attention")})


@pytest.fixture(scope="module")
def setting():
    """(reference, network, params, groups of images -> the patch embedding's input)."""
    from tests.parity.conftest import Reference

    ref = Reference("mixedae")
    network = models.make(
        {
            "precision": "float32",
            "encoder": encoder(ref),
            "decoder": decoder(ref),
            "token_projector": {
                "hidden": ref["hp/projector_hidden"],
                "width": ref["hp/projector_dim"],
            },
        }
    )
    named = ref.part("params")
    for table in ("pos_embed", "decoder_pos_embed"):
        del named[table]
    return ref, network, jax.tree.map(jnp.asarray, to_tree(named))


def task_of(ref, hp):
    """(groups of images [G, K, H, W, C], sources, options of build_mixed_task)."""
    batch = jnp.asarray(images(ref["in/imgs"]))
    members = hp["group_size"]
    source = jnp.asarray(ref[f"in/{hp['source']}"])
    grouped = batch.reshape(-1, members, *batch.shape[1:])
    if hp["mix_mode"] == "full":
        source = homologous.rotations(source, members).reshape(-1, source.shape[-1])
        grouped = jnp.repeat(grouped, members, axis=0)
    topk = mixedae.TopK(
        hp.get("K", 0), hp.get("topk_start_layer", 0), hp.get("cls_key", "keep")
    )
    contrast = None
    if hp["homocon"]:
        temperature, weight = ref["hp/contrast_temperature"], ref["hp/contrast_weight"]
        contrast = mixedae.Contrast("encoder", "all", temperature, weight)
    options = {"attend": hp["attention"], "topk": topk, "contrast": contrast}
    return grouped, source, options | {"segment": bool(hp["segment"])}


@pytest.mark.parametrize("name", variants())
def test_mixedae(setting, name):
    ref, network, params = setting
    hp = {k: v.item() for k, v in ref.part(f"hp/{name}").items()}
    grouped, source, options = task_of(ref, hp)
    members, patch = hp["group_size"], ref["hp/patch_size"]
    target = pixels.normalise(
        pixels.patchify(grouped.reshape(-1, *grouped.shape[2:]), patch)
    )

    def run(params):
        pictures, inputs, kept, labels = mixedae.build_mixed_task(
            grouped, source, patch, **options
        )
        outputs, _ = network.apply(params, {}, pictures, train=True, **inputs)
        losses = {"recon": pixels.masked_mse(outputs["prediction"], target, kept)}
        total = losses["recon"]
        if options["contrast"]:
            losses["contrast"] = homologous_contrast(
                outputs["projected"],
                labels,
                options["contrast"].temperature,
                positives="all",
                members=members,
            )
            total += options["contrast"].weight * losses["contrast"]
        return total, (losses, outputs)

    evaluate = jax.jit(jax.value_and_grad(run, has_aux=True))
    (loss, (losses, outputs)), grads = evaluate(params)
    ours = {f"loss_{term}": value for term, value in losses.items()}
    ours |= {"loss": loss, "z": outputs["tokens"], "pred": outputs["prediction"]}
    if "topk_accuracy" in outputs["notes"]:
        ours["topk_accuracy"] = outputs["notes"]["topk_accuracy"][
            options["topk"].start :
        ]
    if options["contrast"]:
        features = outputs["projected"]
        norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
        ours["features"] = features / norm
    checked = set()
    for key, expected in ref.part(f"out/{name}").items():
        if key.startswith("grad/"):
            tensor = key.removeprefix("grad/")
            expected = at(to_tree({tensor: expected}), tensor)
            ref.check(f"{name}/{key}", at(grads, tensor), expected)
        elif not key.endswith("_f64") and key != "topk_keep":
            ref.check(f"{name}/{key}", jnp.reshape(ours[key], expected.shape))
            checked.add(key)
    assert {"loss_recon", "z"} <= checked


def test_kept_keys(setting):
    ref, network, params = setting
    wanted = ref.arrays["out/homologous/topk_keep"]
    hp = {k: v.item() for k, v in ref.part("hp/homologous").items()}
    grouped, source, options = task_of(ref, hp)
    pictures, inputs, *_ = mixedae.build_mixed_task(
        grouped, source, ref["hp/patch_size"], **options
    )
    choose = inputs["encoder"]["choose"]

    def noted(layer, logits):
        kept, _ = choose(layer, logits)
        return kept, {"kept": kept}

    inputs["encoder"]["choose"] = noted
    run = jax.jit(lambda p: network.apply(p, {}, pictures, train=True, **inputs)[0])
    kept = run(params)["notes"]["kept"]  # [layer, G, heads, 1 + L, 1 + L]
    compared = kept if kept.shape == wanted.shape else kept[..., 1:, 1:]
    np.testing.assert_array_equal(compared, wanted)


def test_targets_mixture_and_codes(setting):
    ref, network, params = setting
    batch, patch = images(ref["in/imgs"]), ref["hp/patch_size"]
    ref.check("target", pixels.normalise(pixels.patchify(batch, patch)))
    source = jnp.asarray(ref["in/source"])
    members = ref["hp/naive/group_size"]
    grouped = batch.reshape(-1, members, *batch.shape[1:])
    pictures = homologous.mix_images(grouped, source, patch)
    outputs = network.encode(params, {}, pictures)
    ref.check("mixed", outputs["embedding"] + outputs["positions"])
    each = network.encode(params, {}, batch)
    tokens = each["embedding"] + each["positions"]
    tokens = tokens.reshape(-1, members, *tokens.shape[1:])
    ref.check("mixed", jax.jit(homologous.mix)(tokens, source))
    codes = ref["in/segment_codes"]
    ours = positions.codes_1d(jnp.arange(codes.shape[0]), codes.shape[1])
    np.testing.assert_allclose(ours, codes, atol=1e-6)
