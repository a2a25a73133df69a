"""ImageNet-C (Hendrycks and Dietterich, ICLR 2019): error under fifteen corruptions.

    E_c  = mean over five severities of the top-1 error
    CE_c = E_c / E_c of AlexNet
    mCE  = mean over the fifteen corruptions of CE_c, in percent

The folder is the official one, FOLDER/<corruption>/<severity>/<class>/*.JPEG. The four
extra corruptions (speckle noise, Gaussian blur, spatter, saturate) do not count.
AlexNet's errors are bound to names, not to an order.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.evals import scores
from mixjax.evals.classify import predictor
from mixjax.evals.features import embedder, extract

LEDGER = True
SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET = {  # mean error over the severities
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def corruption_errors(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{corruption: CE in percent} of its errors (0 .. 1) at every severity."""
    for name in errors:
        check_name("corruption", name, ALEXNET)
    return {k: 100 * float(np.mean(v)) / ALEXNET[k] for k, v in errors.items()}


def mce(errors: Mapping[str, Sequence[float]]) -> float:
    """The mean corruption error in percent; UsageError unless all fifteen are there."""
    missing = ALEXNET.keys() - errors.keys()
    if missing:
        raise UsageError(f"mCE needs all corruptions; missing: {sorted(missing)}.")
    return float(np.mean(list(corruption_errors(errors).values())))


def make(*, folder: str, view: str, sets, network, mesh, check: Callable) -> Callable:
    """The evaluator: mCE, the plain mean error, and the mean error per corruption.

    folder: of the fifteen corruptions; view: of its pictures, which are 224 x 224
    already. UsageError if one is missing, before anything is computed.
    """
    field = "evals.imagenet_c"
    data = {
        (name, severity): sets.other(
            f"folder:{folder}", f"{name}/{severity}", view, field, network.geometry
        )
        for name in ALEXNET
        for severity in SEVERITIES
    }
    for (name, severity), one in data.items():
        if one.source.classes != sets.classes:
            raise UsageError(
                f"{field}.folder={folder}: {name}/{severity} has "
                f"{one.source.classes} classes, the data of the run {sets.classes}."
            )
    # One compilation for all: they differ in nothing but the pictures.
    predict = embedder(predictor(network), next(iter(data.values())), mesh)

    def run(state, step, writer):
        errors, count = {}, 0
        for (name, _), one in data.items():
            logits, labels = extract(predict, one, state, check)
            wrong = 1 - scores.top(logits, labels, 1) / 100
            errors.setdefault(name, []).append(wrong)
            count += len(labels)
        each = {name: 100 * float(np.mean(v)) for name, v in errors.items()}
        found = {"mce": mce(errors), "error": float(np.mean(list(each.values())))}
        found |= {**each, "examples": count}
        return {f"robust/imagenet_c/{k}": v for k, v in found.items()}

    return run
