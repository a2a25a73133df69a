"""TFDS sets prepared as array_record, read without TensorFlow.

The picture is the feature `image` and the class is the feature `label`; if a set has
no image or class of that name, its first feature of that type is used. A set with a
sequence `labels` instead of a single class has several classes per picture (PASCAL
VOC). If it also has `labels_no_difficult`, the classes that are missing there are
present but not scored.
"""

import difflib
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixjax.data.source import MissingSplit, Source
from mixjax.errors import UsageError, nearest

ALL_LABELS, SCORED_LABELS = "labels", "labels_no_difficult"
FILE_FEATURES = ("file_name", "image/filename", "image/file_name")


def open_tfds(name: str, split: str, directory: str) -> Source:
    """Opens a prepared TFDS set; pictures stay encoded until they are read.

    name: as in tfds.builder, such as oxford_iiit_pet:3.2.0. directory: the folder of
    TFDS sets, "" for TFDS's default. Raises UsageError if the set is unknown, not
    prepared as array_record, or without images, and MissingSplit for a missing split.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            "data.source=tfds:... needs the package tensorflow-datasets."
        ) from error
    builder = find_builder(tfds, name, directory)
    check_prepared(name, builder, directory)
    check_splits(name, split, builder.info.splits)
    features = builder.info.features
    image = find_feature("image", features, tfds.features.Image)
    if image is None:
        raise UsageError(
            f"data.source=tfds:{name} has no image among its features {list(features)}."
        )
    records = open_records(tfds, builder, name, split)
    class_names, several, read_label = labels_of(tfds, features)
    file = next((k for k in FILE_FEATURES if k in features), None)

    def read(i):
        record = records[i]
        return bytes(record[image]), read_label(record)

    return Source(
        name=f"{name}/{split}",
        size=len(records),
        classes=len(class_names),
        several=several,
        names=tuple(class_names),
        read=read,
        title=lambda i: f"{name}/{split}, example {i}",
        file=None if file is None else lambda i: _decode_text(records[i][file]),
        images=None,
        labels=None,
    )


def find_builder(tfds, name: str, directory: str):
    """The TFDS builder of the set `name`; UsageError suggests similar names."""
    options = {"data_dir": directory} if directory else {}
    try:
        # Without try_gcs=False, TFDS would look for the set on the network.
        return tfds.builder(name, try_gcs=False, **options)
    except Exception as error:  # TFDS has its own types, and builders import anything
        reason = str(error).strip().splitlines()[0].rstrip(".")
        known = tfds.list_builders(with_community_datasets=False)
        similar = difflib.get_close_matches(name, known)
        ending = f"; {nearest(name, similar)}" if similar else "."
        raise UsageError(f"data.source=tfds:{name}: {reason}{ending}") from error


def check_prepared(name: str, builder, directory: str) -> None:
    """UsageError, with the command to run, unless array_record files exist."""
    if not builder.is_prepared():
        raise UsageError(
            f"data.source=tfds:{name} is not prepared in {builder.data_dir}; "
            f"run: {_prepare_command(name, data_dir=directory)}"
        )
    formats = [f.value for f in builder.info.available_file_formats()]
    if "array_record" in formats:
        return
    version = Path(builder.data_dir)  # <folder of sets>/<set>/[<config>/]<version>
    folder = version.parents[builder.info.full_name.count("/")]
    new_folder = folder.with_name(f"{folder.name}-array_record")
    file_format = ", ".join(formats) or "tfrecord"
    # Only TFRecord files can be converted; other formats must be downloaded again.
    from_dir = version if file_format == "tfrecord" else ""
    raise UsageError(
        f"data.source=tfds:{name} was prepared in {version} as {file_format}, which "
        f"has no random access; set data.directory={new_folder} and run: "
        f"{_prepare_command(name, from_dir=from_dir, data_dir=new_folder)}"
    )


def check_splits(name: str, split: str, known) -> None:
    """MissingSplit unless every term of `split` is a known split."""
    for term in split.split("+"):  # such as train+unlabelled[:50%]
        base = term.split("[")[0].strip()
        if base not in known:
            raise MissingSplit(
                f"data: tfds:{name} has no split {base!r}; {nearest(base, known)}"
            )


def open_records(tfds, builder, name: str, split: str):
    """The records of `split` by number, with images left as encoded bytes."""
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    decoders = {k: tfds.decode.SkipDecoding() for k in images}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except ValueError as error:  # the slice is empty, too long, or malformed
        reason = str(error).splitlines()[-1]
        raise UsageError(f"data: split {split!r} of tfds:{name}: {reason}") from error


def find_feature(name: str, features, feature_type: type) -> str | None:
    """`name` if that feature has the type, else the first feature that has it."""
    matches = [k for k, f in features.items() if isinstance(f, feature_type)]
    return name if name in matches else next(iter(matches), None)


def labels_of(tfds, features) -> tuple[list[str], bool, Callable]:
    """(class names, whether a picture has several, function from record to label).

    Labels are as in Source: a number, -1 without labels, or int8 [classes].
    """
    single = find_feature("label", features, tfds.features.ClassLabel)
    if single is not None:
        return features[single].names, False, lambda record: int(record[single])
    if not _is_class_sequence(tfds, features, ALL_LABELS):
        return [], False, lambda record: -1
    names = features[ALL_LABELS].feature.names
    has_scored = _is_class_sequence(tfds, features, SCORED_LABELS)
    scored = SCORED_LABELS if has_scored else ALL_LABELS

    def read_label(record):
        label = np.zeros(len(names), np.int8)
        # The order matters: a class that is also scored overwrites its -1.
        label[record[ALL_LABELS]] = -1
        label[record[scored]] = 1
        return label  # [classes]

    return names, True, read_label


def _is_class_sequence(tfds, features, name: str) -> bool:
    feature = features[name] if name in features else None
    if not isinstance(feature, tfds.features.Sequence):
        return False
    return isinstance(feature.feature, tfds.features.ClassLabel)


def _decode_text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _prepare_command(name: str, **flags) -> str:
    options = [f"--{k}={shlex.quote(str(v))}" for k, v in flags.items() if v]
    return " ".join(["python -m mixjax.prepare", name, *options])
