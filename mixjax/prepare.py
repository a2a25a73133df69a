"""python -m mixjax.prepare NAME [--data_dir=DIR] [--from_dir=DIR]

Downloads a TFDS image set and prepares it as array_record, the form that mixjax reads;
or re-writes a copy that was prepared as TFRecord. The only command that needs
TensorFlow: pip install -r requirements-prepare.txt.

  NAME            such as cifar10, imagenet2012, or oxford_iiit_pet:3.2.0
  --data_dir=DIR  where the prepared set goes; TFDS's own default unless given
  --from_dir=DIR  folder of a prepared version (it holds dataset_info.json) to re-write
                  instead of downloading

Sets that must be fetched by hand, such as ImageNet, are looked for where TFDS says.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from absl import flags

from mixjax import errors

DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the prepared set goes.")
FROM_DIR = flags.DEFINE_string("from_dir", None, "A prepared version to re-write.")


def download(name: str, data_dir: str | None) -> Path:
    """Downloads and prepares the set `name`; returns its folder."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def rewrite(name: str, source: Path, data_dir: str | None) -> Path:
    """Copies a TFRecord copy of a set, record by record, into array_record files.

    source: <anywhere>/<set>/[<config>/]<version> with dataset_info.json. The result
    appears in one move, below data_dir, under the same set, config and version.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    info_path = source / "dataset_info.json"
    if not info_path.is_file():
        raise errors.UsageError(f"--from_dir={source}: no dataset_info.json there.")
    info = json.loads(info_path.read_text())
    if info.get("fileFormat", "tfrecord") != "tfrecord":
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
    if target.exists():
        raise errors.UsageError(f"{target} is there already.")
    new = target.with_name(target.name + ".incomplete")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if ".tfrecord" not in path.name:
            shutil.copy(path, new / path.name)
            continue
        writer = ArrayRecordWriter(
            str(new / path.name.replace(".tfrecord", ".array_record")), "group_size:1"
        )
        for record in records(path):
            writer.write(record)
        writer.close()
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        split.pop("filepathTemplate", None)
    (new / "dataset_info.json").write_text(json.dumps(info, indent=2))
    new.rename(target)
    tfds.builder_from_directory(target)  # it can be read, or this says why not
    return target


def records(path: Path):
    """The serialized examples of a TFRecord file."""
    import tensorflow as tf

    for record in tf.data.TFRecordDataset([str(path)]):
        yield record.numpy()


def run(argv: list[str]) -> int:
    """Prepares as the flags say; returns the exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        try:
            names = flags.FLAGS(argv)[1:]
        except flags.Error as error:
            raise errors.UsageError(str(error)) from error
        if len(names) != 1:
            raise errors.UsageError("name one data set, such as cifar10.")
        try:
            import tensorflow  # noqa: F401
        except ImportError as error:
            raise errors.UsageError(
                "preparing needs TensorFlow: pip install -r requirements-prepare.txt"
            ) from error
        if FROM_DIR.value:
            source = Path(FROM_DIR.value).expanduser()
            folder = rewrite(names[0], source, DATA_DIR.value)
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
