"""TFDS sets, prepared as array_record and read without TensorFlow.

The picture is the feature `image`, the class `label`, where features have those names,
or else the first of their kind. A set without such a label but with a sequence
`labels` has several per picture; those that are not in its `labels_no_difficult`, if it
has that, are not counted (PASCAL VOC).
"""

import difflib
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixjax.data.source import MissingSplit, Source
from mixjax.errors import UsageError, nearest

SEVERAL, COUNTED = "labels", "labels_no_difficult"
FILES = ("file_name", "image/filename", "image/file_name")


def open_tfds(rest: str, split: str, directory: str) -> Source:
    """A prepared TFDS set, read without TensorFlow; pictures stay encoded."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            "data.source=tfds:... needs the package tensorflow-datasets."
        ) from error
    where = {"data_dir": directory} if directory else {}
    try:
        builder = tfds.builder(rest, try_gcs=False, **where)
    except Exception as error:  # TFDS raises its own kinds, and imports of the set's
        reason = str(error).strip().splitlines()[0]
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(rest, known)
        near = f"; {nearest(rest, close)}" if close else "."
        reason = reason.rstrip(".") + near
        raise UsageError(f"data.source=tfds:{rest}: {reason}") from error
    if not builder.is_prepared():
        raise UsageError(
            f"data.source=tfds:{rest} is not prepared in {builder.data_dir}; "
            f"run: {_prepare(rest, data_dir=directory)}"
        )
    formats = [f.value for f in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise UsageError(_how_to_rewrite(rest, builder, formats))
    for part in split.split("+"):  # such as train+unlabelled[:50%]
        base = part.split("[")[0].strip()
        if base not in builder.info.splits:
            splits = nearest(base, builder.info.splits)
            raise MissingSplit(f"data: tfds:{rest} has no split {base!r}; {splits}")
    features = builder.info.features
    kinds = tfds.features
    image = _named("image", features, lambda f: isinstance(f, kinds.Image))
    if image is None:
        raise UsageError(
            f"data.source=tfds:{rest} has no image among {list(features)}."
        )
    encoded = [k for k, f in features.items() if isinstance(f, kinds.Image)]
    decoders = {k: tfds.decode.SkipDecoding() for k in encoded}
    try:
        records = builder.as_data_source(split, decoders=decoders)
    except ValueError as error:  # a slice that is empty, too long, or no slice
        reason = str(error).splitlines()[-1]
        raise UsageError(f"data: split {split!r} of tfds:{rest}: {reason}") from error
    names, several, label = labels_of(tfds, features)
    file = next((k for k in FILES if k in features), None)

    def read(i):
        record = records[i]
        return bytes(record[image]), label(record)

    return Source(
        name=f"{rest}/{split}",
        size=len(records),
        classes=len(names),
        several=several,
        names=tuple(names),
        read=read,
        title=lambda i: f"{rest}/{split}, example {i}",
        file=None if file is None else lambda i: _text(records[i][file]),
        images=None,
        labels=None,
    )


def _named(name: str, features, fits: Callable) -> str | None:
    """`name` if that feature fits, else the first that does."""
    candidates = [k for k, f in features.items() if fits(f)]
    return name if name in candidates else next(iter(candidates), None)


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def labels_of(tfds, features) -> tuple[list[str], bool, Callable]:
    """(names of the classes, whether pictures have several, record -> label)."""
    kind = tfds.features.ClassLabel
    one = _named("label", features, lambda f: isinstance(f, kind))
    if one is not None:
        return features[one].names, False, lambda record: int(record[one])
    if not _is_sequence(tfds, features, SEVERAL):
        return [], False, lambda record: -1
    names = features[SEVERAL].feature.names
    counted = COUNTED if _is_sequence(tfds, features, COUNTED) else SEVERAL

    def label(record):
        splits = np.zeros(len(names), np.int8)
        splits[record[SEVERAL]] = -1
        splits[record[counted]] = 1
        return splits

    return names, True, label


def _is_sequence(tfds, features, name: str) -> bool:
    kinds = tfds.features
    feature = features[name] if name in features else None
    of = feature.feature if isinstance(feature, kinds.Sequence) else None
    return isinstance(of, kinds.ClassLabel)


def _prepare(name: str, **flags) -> str:
    words = [f"--{k}={shlex.quote(str(v))}" for k, v in flags.items() if v]
    return " ".join(["python -m mixjax.prepare", name, *words])


def _how_to_rewrite(name: str, builder, formats: list[str]) -> str:
    """What to say of a set that lies there in a form without random access."""
    copy = Path(builder.data_dir)  # <folder of sets>/<set>/[<config>/]<version>
    folder = copy.parents[builder.info.full_name.count("/")]
    other = folder.with_name(f"{folder.name}-array_record")
    form = ", ".join(formats) or "tfrecord"
    # Only TFRecord files can be re-written; other forms are downloaded anew.
    source = copy if form == "tfrecord" else ""
    return (
        f"data.source=tfds:{name} was prepared in {copy} as {form}, which has no "
        f"random access; set data.directory={other} and run: "
        f"{_prepare(name, from_dir=source, data_dir=other)}"
    )
