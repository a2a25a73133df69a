"""python -m mixjax.prepare NAME [--data_dir=DIR] [--from_dir=DIR]

Downloads a TFDS image set and prepares it as array_record, the format that mixjax
reads, or converts a copy that was prepared as TFRecord. This is the only command that
needs TensorFlow: pip install -r requirements-prepare.txt.

  NAME            such as cifar10, imagenet2012, or oxford_iiit_pet:3.2.0
  --data_dir=DIR  where to write the prepared set; default: TFDS's folder
  --from_dir=DIR  the folder of a prepared version, with dataset_info.json, to convert
                  instead of downloading

Sets that must be downloaded by hand, such as ImageNet, are expected in the folder that
TFDS names for them.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from absl import flags

from mixjax import errors

DATA_DIR = flags.DEFINE_string("data_dir", None, "Where to write the prepared set.")
FROM_DIR = flags.DEFINE_string("from_dir", None, "A prepared version to convert.")


def download(name: str, data_dir: str | None) -> Path:
    """Downloads and prepares the set `name`; returns the folder of its version.

    Raises UsageError if TFDS does not know it or it exists in another format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # TFDS raises types of its own
        raise errors.UsageError(str(error).strip().splitlines()[0]) from error
    if builder.is_prepared():
        if "array_record" in [f.value for f in builder.info.available_file_formats()]:
            return Path(builder.data_dir)
        raise errors.UsageError(
            f"{builder.data_dir} holds {name} in another format; convert it with "
            f"--from_dir={builder.data_dir} and another --data_dir."
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def locate(name: str, source: Path, data_dir: str | None) -> Path:
    """The folder for the converted copy of `source`, which is a prepared version.

    source: <anywhere>/<set>/[<config>/]<version> with dataset_info.json. The copy gets
    the same set, config and version below data_dir. Raises UsageError if `source` is
    not a TFRecord version of `name` or the copy exists.
    """
    info_path = source / "dataset_info.json"
    if not info_path.is_file():
        raise errors.UsageError(f"--from_dir={source} has no dataset_info.json.")
    info = json.loads(info_path.read_text())
    # Old versions of TFDS wrote TFRecord only and did not record the format.
    if info.get("fileFormat") not in (None, "", "tfrecord"):
        raise errors.UsageError(
            f"--from_dir={source} is {info['fileFormat']}, not tfrecord."
        )
    if info["name"] != name.partition(":")[0].partition("/")[0]:
        raise errors.UsageError(
            f"--from_dir={source} holds {info['name']}, not {name}."
        )
    parts = [info["name"], info.get("configName", ""), info["version"]]
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    target = root.expanduser().joinpath(*filter(None, parts))
    if target.exists() and target.samefile(source):
        raise errors.UsageError(
            f"--from_dir={source} cannot be converted in place; set --data_dir to a "
            f"folder other than {root}."
        )
    if target.exists():
        raise errors.UsageError(f"{target} already exists.")
    return target


def rewrite(source: Path, target: Path) -> None:
    """Converts the TFRecord version `source` to array_record, record by record.

    `target` appears in one move once it is complete.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    new = target.with_name(target.name + ".incomplete")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        if ".tfrecord" not in path.name:
            shutil.copy(path, new / path.name)
            continue
        writer = ArrayRecordWriter(
            # TFDS's setting: groups of one record, so that each is read by itself.
            str(new / path.name.replace(".tfrecord", ".array_record")),
            "group_size:1",
        )
        for record in records(path):
            writer.write(record)
        writer.close()
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        split.pop("filepathTemplate", None)  # names the .tfrecord files
    (new / "dataset_info.json").write_text(json.dumps(info, indent=2))
    new.rename(target)
    tfds.builder_from_directory(target)  # raises unless TFDS can read the copy


def records(path: Path):
    """Yields the serialized examples of a TFRecord file."""
    import tensorflow as tf

    for record in tf.data.TFRecordDataset([str(path)]):
        yield record.numpy()


def run(argv: list[str]) -> int:
    """Prepares a set according to the command line; returns the exit code."""
    # TensorFlow reads these when imported; they silence its log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        try:
            names = flags.FLAGS(argv)[1:]
        except flags.Error as error:
            raise errors.UsageError(str(error)) from error
        if len(names) != 1:
            raise errors.UsageError("name one data set, such as cifar10.")
        if FROM_DIR.value:
            source = Path(FROM_DIR.value).expanduser()
            # Before the slow import, so that wrong folders are reported at once.
            folder = locate(names[0], source, DATA_DIR.value)
        try:
            import tensorflow  # noqa: F401
        except ImportError as error:
            raise errors.UsageError(
                "preparing needs TensorFlow: pip install -r requirements-prepare.txt"
            ) from error
        if FROM_DIR.value:
            rewrite(source, folder)
        else:
            folder = download(names[0], DATA_DIR.value)
    except errors.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.USAGE
    print(f"prepared: {folder}")
    return errors.DONE


if __name__ == "__main__":
    if any(a in ("-h", "-help", "--help") for a in sys.argv[1:]):
        print(__doc__)
        sys.exit(errors.DONE)
    sys.exit(run(sys.argv))
