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

    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # TFDS raises its own kinds
        raise errors.UsageError(str(error).strip().splitlines()[0]) from error
    if builder.is_prepared():
        if "array_record" in [f.value for f in builder.info.available_file_formats()]:
            return Path(builder.data_dir)
        raise errors.UsageError(
            f"{builder.data_dir} holds {name} in another form; re-write it with "
            f"--from_dir={builder.data_dir} and another --data_dir."
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def locate(name: str, source: Path, data_dir: str | None) -> Path:
    """Where a re-written copy of `source` goes; UsageError if it cannot go there.

    source: <anywhere>/<set>/[<config>/]<version> with dataset_info.json. The copy goes
    below data_dir, under the same set, config and version.
    """
    info_path = source / "dataset_info.json"
    if not info_path.is_file():
        raise errors.UsageError(f"--from_dir={source}: no dataset_info.json there.")
    info = json.loads(info_path.read_text())
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
            f"--from_dir={source} cannot be re-written in place; give --data_dir="
            f"another folder than {root}."
        )
    if target.exists():
        raise errors.UsageError(f"{target} is there already.")
    return target


def rewrite(source: Path, target: Path) -> None:
    """Copies a TFRecord copy of a set, record by record, into array_record files.

    `target` appears in one move once all is copied.
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
            str(new / path.name.replace(".tfrecord", ".array_record")), "group_size:1"
        )
        for record in records(path):
            writer.write(record)
        writer.close()
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        split.pop("filepathTemplate", None)
    (new / "dataset_info.json").write_text(json.dumps(info, indent=2))
    new.rename(target)
    tfds.builder_from_directory(target)  # it can be read, or this says why not


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
        if FROM_DIR.value:
            source = Path(FROM_DIR.value).expanduser()
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
