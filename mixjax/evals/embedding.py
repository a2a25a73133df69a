"""t-SNE of features in the plane (van der Maaten & Hinton, 2008), coloured by class.

It embeds the features that evaluators read, scaled to length 1 as for kNN. Lam
("Leveraging Image Mixtures for Unsupervised Detection Pre-training", figure 9) does not
state settings. Needs scikit-learn, which nothing else in training needs. Written to
figures/embedding_<step>.png and to TensorBoard.
"""

import colorsys
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixjax.errors import UsageError
from mixjax.evals import pictures
from mixjax.evals.features import embedder, extract

SIDE = 512  # of the figure, in pixels
DOT = 3  # diameter of a point, in pixels
KEYS = 20  # figures of more classes have no legend


def check_installed() -> None:
    """Raises UsageError if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "t-SNE needs the package scikit-learn: pip install 'scikit-learn>=1.7,<2'."
        )


def flatten(features: np.ndarray, *, perplexity: float, seed: int) -> np.ndarray:
    """Features [N, D] -> points in the plane [N, 2], deterministically."""
    # Imported here: training must not need scikit-learn.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # several threads add up in no fixed order
        return tsne.fit_transform(unit)


def colour(label: int, classes: int) -> tuple[int, int, int]:
    """The RGB colour of a class; grey if there are no classes.

    Hues go around the circle, and neighbours differ in brightness.
    """
    if classes < 1:
        return 96, 96, 96
    light = (0.85, 0.6)[label % 2]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(label / classes, 1, light))


def plot(points: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Draws points [N, 2] in the colours of labels [N]: uint8 [SIDE, SIDE, 3]."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    # One scale for both axes: distances in the plane are what t-SNE means.
    low, reach = points.min(axis=0), np.ptp(points, axis=0).max()
    spots = DOT + (points - low) / max(reach, 1e-12) * (SIDE - 1 - 2 * DOT)
    for (x, y), label in zip(spots, labels, strict=True):
        edges = x - DOT / 2, y - DOT / 2, x + DOT / 2, y + DOT / 2
        draw.ellipse(edges, fill=colour(int(label), classes))
    for label in range(classes if classes <= KEYS else 0):
        at = SIDE - 20, 4 + pictures.LINE * label
        draw.text(at, str(label), colour(label, classes), font)
    return np.asarray(page)


def mapper(
    *, points: int, perplexity: float, seed: int, sets, method, mesh, check: Callable
) -> Callable:
    """state -> the figure of `points` held-out (or training) examples; 0: of all."""
    check_installed()
    data = sets.test(points) or sets.bank(points)
    if not 0 < perplexity < data.source.size:
        raise UsageError(
            f"evals.embedding.perplexity={perplexity} must be above 0 and below the "
            f"{data.source.size} points."
        )
    # An example of several classes has no single colour.
    classes = 0 if sets.several else sets.classes
    embed = embedder(method.features, data, mesh)

    def draw(state):
        features, labels = extract(embed, data, state, check)
        plane = flatten(features, perplexity=perplexity, seed=seed)  # [N, 2]
        return plot(plane, labels if classes else np.zeros(len(plane)), classes)

    return draw


def make(
    *,
    points: int,
    perplexity: float,
    seed: int,
    sets,
    method,
    mesh,
    check: Callable,
    workdir: Path,
) -> Callable:
    """The evaluator: the figure of `points` held-out (or training) examples; 0: all.

    perplexity, seed: of t-SNE.
    """
    draw = mapper(
        points=points,
        perplexity=perplexity,
        seed=seed,
        sets=sets,
        method=method,
        mesh=mesh,
        check=check,
    )

    def run(state, step, writer):
        page = pictures.sheet({"t-SNE of features": draw(state)[None]})
        pictures.publish(page, workdir, "embedding", step, writer)
        return {}

    return run
