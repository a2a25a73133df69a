"""A substitute for missing data: blank pictures of the size the network expects."""

import io

import numpy as np
from PIL import Image

from mixjax.data import sources
from mixjax.data.scenes import Map, Objects, objects
from mixjax.data.source import Source
from mixjax.state import Geometry

SIZE = 10**7  # more than any batch
IMAGENET = 1281167
# Examples of the splits that recipes train on, by data.source and data.split.
SIZES = {
    ("ade20k:ADEChallengeData2016", "train"): 20210,
    ("coco:coco", "train2017"): 117266,  # those with annotations
    ("folder:tiny-imagenet-200", "train"): 100000,
    ("npz:cifar10.npz", "train"): 50000,
    ("tfds:cifar10", "train"): 50000,
    ("tfds:cifar10", "train | balanced(0.1, seed=0)"): 5000,
    ("tfds:cifar100", "train"): 50000,
    ("tfds:imagenet2012", "train"): IMAGENET,
    ("tfds:imagenet2012_subset/1pct", "train"): 12811,
    ("tfds:oxford_iiit_pet", "train | part(.8, seed=0)"): 2944,
    ("tfds:stl10", "train+unlabelled"): 105000,
    ("voc_objects:VOCdevkit", "trainval2007+trainval2012"): 16551,
}


def compiling_source(config, train: Source | None, geometry: Geometry) -> Source:
    """`train` itself, or blank pictures in its place, as many as the set has.

    To compile a step, no picture is needed, but the number of them is: a set kept on
    the devices takes memory. For a set of unknown size, ImageNet's is assumed.
    """
    if train is not None:
        return train
    size = usual_size(config.data) or IMAGENET
    return source(config, geometry)._replace(size=size)


def usual_size(fields) -> int | None:
    """Examples that the training split of a public set has; None for another set.

    fields: config.data.
    """
    return SIZES.get((fields.source, fields.split))


def source(config, geometry: Geometry) -> Source:
    """SIZE blank pictures, with the labels that the network expects.

    Encoded files if config.data.source consists of files, else arrays.
    """
    pixels = np.zeros((*geometry.image_size, geometry.channels), np.uint8)
    kind = config.data.source.partition(":")[0]
    annotated = kind in sources.ANNOTATED
    encoded = annotated or kind in ("tfds", "folder")
    picture = as_file(pixels) if encoded else pixels
    classes, several = labels(config)
    label = np.zeros(classes, np.int8) if several else 0 if classes else -1
    if annotated:
        label = annotation(kind, *pixels.shape[:2])
    repeat = lambda x: np.broadcast_to(x, (SIZE, *np.shape(x)))  # takes no memory
    return Source(
        name="a blank stand-in",
        size=SIZE,
        classes=classes,
        several=several,
        names=(),
        read=lambda i: (picture, label),
        title=lambda i: f"blank picture {i}",
        file=None,
        images=None if encoded else repeat(pixels),
        labels=None if encoded else repeat(label),
    )


def annotation(kind: str, height: int, width: int) -> Objects | Map:
    """One object that fills the picture, or a map of a single class."""
    if kind == "ade20k":
        return Map(np.zeros((height, width), np.uint8), "blank")
    outline = [np.array([0.0, 0, width, 0, width, height, 0, height])]
    row = ((0, 0, width, height), 0, False, False, height * width, outline)
    return objects(0, height, width, [row], with_shapes=True)


def labels(config) -> tuple[int, bool]:
    """(the number of classes that the network expects, whether labels are multiple).

    0 classes if the network has no classifier.
    """
    model, method = config.model, config.method
    numbers = (getattr(section, "classes", 0) for section in model.values())
    classes = next(filter(None, numbers), 0)
    return classes, bool(classes) and method.get("loss") == "sigmoid"


def as_file(pixels: np.ndarray) -> bytes:
    """A JPEG of pixels [H, W, C], in colour unless C is 1."""
    grey = pixels.shape[2] == 1
    shown = pixels[:, :, 0] if grey else np.zeros((*pixels.shape[:2], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "jpeg")
    return file.getvalue()
