"""Features in the plane: t-SNE (van der Maaten & Hinton, 2008), coloured by class.

Of the features that evaluators read, each of length 1, as kNN compares them. Lam
("Leveraging Image Mixtures for Unsupervised Detection Pre-training", figure 9) names
no settings. Needs scikit-learn, which training does not. Written to
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

SIDE = 512  # pixels of the picture
DOT = 3  # pixels across
KEYS = 20  # as many classes have their colour explained


def check_installed() -> None:
    """Raises UsageError where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "t-SNE needs the package scikit-learn: pip install 'scikit-learn>=1.7,<2'."
        )


def flatten(features: np.ndarray, *, perplexity: float, seed: int) -> np.ndarray:
    """Features [N, D] -> places in the plane [N, 2], the same each time."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # several threads add in any order
        return tsne.fit_transform(unit)


def colour(label: int, classes: int) -> tuple[int, int, int]:
    """One for each class, around the circle; grey without classes."""
    if classes < 1:
        return 96, 96, 96
    light = (0.85, 0.6)[label % 2]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(label / classes, 1, light))


def plot(places: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Places [N, 2] as dots in the colours of labels [N]: uint8 [SIDE, SIDE, 3]."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    low, reach = places.min(axis=0), np.ptp(places, axis=0).max()
    spots = DOT + (places - low) / max(reach, 1e-12) * (SIDE - 1 - 2 * DOT)
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
    """state -> a picture of `points` held-out (or training) examples; 0: of all."""
    check_installed()
    data = sets.test(points) or sets.bank(points)
    if not 0 < perplexity < data.source.size:
        raise UsageError(
            f"evals.embedding.perplexity={perplexity} must be above 0 and below the "
            f"{data.source.size} points."
        )
    classes = 0 if sets.several else sets.classes  # of no one colour, then
    embed = embedder(method.features, data, mesh)

    def draw(state):
        features, labels = extract(embed, data, state, check)
        places = flatten(features, perplexity=perplexity, seed=seed)
        return plot(places, labels if classes else np.zeros(len(places)), classes)

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
    """The evaluator; see mapper."""
    how = dict(points=points, perplexity=perplexity, seed=seed)
    draw = mapper(**how, sets=sets, method=method, mesh=mesh, check=check)

    def run(state, step, writer):
        page = pictures.sheet({"t-SNE of features": draw(state)[None]})
        pictures.publish(page, workdir, "embedding", step, writer)
        return {}

    return run
