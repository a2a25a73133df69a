"""ImageNet-C (Hendrycks and Dietterich, ICLR 2019): error under fifteen corruptions.

    E_c  = mean over five severities of the top-1 error
    CE_c = E_c / (E_c of AlexNet)
    mCE  = mean over the fifteen corruptions of CE_c, in percent

The folder is the official one, FOLDER/<corruption>/<severity>/<class>/*.JPEG. The four
extra corruptions (speckle noise, Gaussian blur, spatter, saturate) are not part of mCE.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.evals import scores
from mixjax.evals.classify import predictor
from mixjax.evals.features import embedder, extract

LEDGER = True
SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET = {  # its mean top-1 error over the severities, from the authors' code
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
    """{corruption: CE in percent} of {corruption: errors (0 .. 1) by severity}.

    UsageError for a name that is none of the fifteen.
    """
    for name in errors:
        check_name("corruption", name, ALEXNET)
    return {k: 100 * float(np.mean(v)) / ALEXNET[k] for k, v in errors.items()}


def mce(errors: Mapping[str, Sequence[float]]) -> float:
    """The mean corruption error in percent; UsageError if a corruption is missing."""
    missing = ALEXNET.keys() - errors.keys()
    if missing:
        raise UsageError(
            f"mCE needs all fifteen corruptions; missing: {sorted(missing)}."
        )
    return float(np.mean(list(corruption_errors(errors).values())))


def make(*, folder: str, view: str, sets, network, mesh, check: Callable) -> Callable:
    """The evaluator: mCE, the plain mean error, and the error of each corruption.

    folder: contains the fifteen corruptions; view: applied to their images, which are
    already 224 x 224. UsageError, before anything is computed, if a folder is missing.
    """
    field = "evals.imagenet_c"
    data = {
        (name, severity): sets.other(
            f"folder:{folder}", f"{name}/{severity}", view, field, network.geometry
        )
        for name in ALEXNET
        for severity in SEVERITIES
    }
    for (name, severity), part in data.items():
        if part.source.classes != sets.classes:
            raise UsageError(
                f"{field}.folder={folder}: {name}/{severity} has "
                f"{part.source.classes} classes, but the data of the run has "
                f"{sets.classes}."
            )
    # One compilation serves all parts: they differ in their images alone.
    predict = embedder(predictor(network), next(iter(data.values())), mesh)

    def run(state, step, writer):
        errors, count = {}, 0
        for (name, _), part in data.items():
            logits, labels = extract(predict, part, state, check)
            wrong = 1 - scores.top(logits, labels, 1) / 100
            errors.setdefault(name, []).append(wrong)
            count += len(labels)
        by_corruption = {k: 100 * float(np.mean(v)) for k, v in errors.items()}
        mean = float(np.mean(list(by_corruption.values())))
        metrics = {"mce": mce(errors), "error": mean}
        metrics |= {**by_corruption, "examples": count}
        return {f"robust/imagenet_c/{k}": v for k, v in metrics.items()}

    return run
