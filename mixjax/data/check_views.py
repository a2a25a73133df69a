"""Checks that views, sources and the network's geometry fit together.

Each raises a UsageError that names the config field at fault.
"""

from collections.abc import Sequence

import jax

from mixjax.data.source import Source
from mixjax.data.views import View
from mixjax.errors import UsageError
from mixjax.state import Geometry


def check_batch(source: Source, batch: int) -> None:
    """UsageError if a batch is larger than the source."""
    if source.size < batch:
        raise UsageError(
            f"batch={batch} is more than the {source.size} examples of "
            f"{source.name}; it must be at most {source.size}."
        )


def check_resident(views: Sequence[View]) -> None:
    """UsageError unless images kept on the devices can serve all `views`."""
    if any(view.scene for view in views):
        raise UsageError(
            "data.on_device=True keeps pictures without annotations; set "
            "data.on_device=False for views that transform boxes or segmentation maps."
        )
    # The images are decoded only once, so the host half may neither differ between
    # views nor be random.
    starts = {view.start for view in views}
    if len(starts) > 1 or any("decode_crop" in start for start in starts):
        raise UsageError(
            f"data.on_device=True decodes every picture once, so all views must "
            f"begin with the same operation and without randomness, not with "
            f"{sorted(starts)}; use crop(...) for random crops."
        )


def check_shape(
    field: str, shape: tuple[int, ...], source: Source, geometry: Geometry, crop: bool
) -> None:
    """UsageError unless images of `shape` fit the network.

    crop: whether any height and width will do, so that only the channels must agree.
    """
    expected = (*geometry.image_size, geometry.channels)
    if shape != expected and not (crop and shape[2:] == expected[2:]):
        raise UsageError(
            f"{field} makes images of {_by(shape)} from {source.name}, "
            f"but model.encoder expects {_by(expected)}."
        )


def view_shape(field: str, view: View, image, source: Source) -> tuple[int, ...]:
    """The shape [H, W, C] that the device half of `view` makes of a host image.

    image: what the host half returned. UsageError if it is an undecoded file, or if an
    operation rejects it.
    """
    if isinstance(image, bytes):
        raise UsageError(
            f"{field}={view.text!r} must begin with decode, decode_crop or "
            f"decode_center, since {source.name} holds picture files."
        )
    image = jax.ShapeDtypeStruct(image.shape, image.dtype)  # [H, W, C]
    try:
        # Traced, not run: operations check their arguments against the shape.
        return jax.eval_shape(view.device, jax.random.key(0), image).shape
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{field}={view.text!r}: {reason}") from error


def check_same_classes(train: Source, test: Source) -> None:
    """UsageError if a label stands for different classes in the two splits.

    Class folders are numbered within each split, so a class that is missing in one
    split shifts the labels of the classes after it.
    """
    if train.names and test.names and train.names != test.names:
        unmatched = sorted(set(train.names) ^ set(test.names))[:3]
        raise UsageError(
            f"data.eval_split: the classes of {test.name} and {train.name} differ, "
            f"such as {unmatched}; both splits must have the same classes."
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
