"""From TFRecord to array_record and back to pictures, without TensorFlow at the end."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,  # importing it here would warn
    reason="needs TensorFlow: pip install -r requirements-prepare.txt",
)

# Writes the set `little` to FOLDER/tfrecord and FOLDER/array_record, and what is in it.
WRITE = """
import io, json, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def picture(i):
    y, x = np.mgrid[:8 + i, :10] * 25
    file = io.BytesIO()
    form = "PNG" if i % 2 else "JPEG"
    Image.fromarray(np.stack([x, y, 0 * x + i], -1).astype(np.uint8)).save(file, form)
    return file.getvalue()

class Little(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        labels = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"id": np.int64, "label": labels, "image": image}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        train, test, unlabelled = range(7), range(7, 10), range(10, 14)
        return {
            "train": self._generate_examples(train),
            "test": self._generate_examples(test),
            "unlabelled": self._generate_examples(unlabelled),
        }

    def _generate_examples(self, numbers):
        for i in numbers:
            label = i % 3 if i < 10 else -1
            yield i, {"id": i, "label": label, "image": io.BytesIO(picture(i))}

def set_of(kind, features, examples):
    def info(self):
        known = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=known)
    body = {"VERSION": tfds.core.Version("1.0.0"), "_info": info}
    body["_split_generators"] = lambda self, manager: {"train": enumerate(examples)}
    body["_generate_examples"] = None
    return type(kind, (tfds.core.GeneratorBasedBuilder,), body)

# As Oxford-IIIT Pet, with more classes and pictures than one; and as PASCAL VOC.
mask = tfds.features.Image(shape=(None, None, 1), use_colormap=True)
classes = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
features = {"a_kind": tfds.features.ClassLabel(num_classes=2), "a_mask": mask}
features |= {"image": tfds.features.Image(), "label": classes}
features |= {"file_name": tfds.features.Text()}
Pets = set_of("Pets", features, [
    {"a_kind": 0, "a_mask": np.zeros((8, 8, 1), np.uint8), "label": i,
     "image": io.BytesIO(picture(i)), "file_name": f"é_{i}.jpg"} for i in range(3)])
shown = [([0, 2], [2]), ([], []), ([1], [1])]
of = {"label": classes, "bbox": tfds.features.BBoxFeature(), "bad": np.bool_}
features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
features |= {"objects": tfds.features.Sequence(of)}
features["labels"] = tfds.features.Sequence(classes)
features["labels_no_difficult"] = tfds.features.Sequence(classes)
box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
Many = set_of("Many", features, [
    {"image": io.BytesIO(picture(i)), "image/filename": f"{i}.jpg",
     "objects": [{"label": n, "bbox": box, "bad": False} for n in all],
     "labels": all, "labels_no_difficult": good}
    for i, (all, good) in enumerate(shown)])
for kind in Pets, Many:
    builder = kind(data_dir=f"{sys.argv[1]}/more", file_format="array_record")
    builder.download_and_prepare()

folder = sys.argv[1]
for form in ("tfrecord", "array_record"):
    builder = Little(data_dir=f"{folder}/{form}", file_format=form)
    builder.download_and_prepare()
contents = {picture(i).hex(): i % 3 for i in range(10)}
json.dump(contents, open(f"{folder}/contents.json", "w"))
"""

# Then two copies: of an old version of TFDS, and one that is cut short. And some runs
# of the command in this process, since TensorFlow takes seconds to start.
RUN = """
import contextlib, shutil
from pathlib import Path
from absl import flags
from mixjax import prepare

def copy_of(name):
    new = Path(folder, name)
    shutil.copytree(f"{folder}/tfrecord", new)
    return new / "little/1.2.0"

info = copy_of("old copy") / "dataset_info.json"
known = json.loads(info.read_text())
del known["fileFormat"]
info.write_text(json.dumps(known))
(shard,) = copy_of("short").glob("*train*")
shard.write_bytes(shard.read_bytes()[:-5])

def run(arguments):
    for flag in ("data_dir", "from_dir"):
        flags.FLAGS[flag].unparse()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = prepare.run(["prepare", *arguments])
        except Exception as error:
            code = type(error).__name__
    return code, out.getvalue(), err.getvalue()

runs = {k: run(a) for k, a in json.loads(sys.argv[2]).items()}
json.dump(runs, open(f"{folder}/runs.json", "w"))
"""

# Prints each split as [[bytes, label], ...] or what was said instead.
READ = """
import json, sys
from mixjax.data import sources
from mixjax.errors import UsageError

found = []
for name, split, folder in json.loads(sys.argv[1]):
    try:
        source = sources.open_source(name, split, folder)
        examples = [source.read(i) for i in range(source.size)]
        if source.several:
            examples = [(data, label.tolist()) for data, label in examples]
        found.append([source.classes, examples])
        if source.file:
            found[-1] += [source.names, [source.file(i) for i in range(source.size)]]
    except UsageError as error:
        found.append([type(error).__name__, str(error)])
assert not any(m.partition(".")[0] == "tensorflow" for m in sys.modules)
print(json.dumps(found, default=bytes.hex))
"""


def python(*arguments, path="", **more):
    """Runs Python, with warnings as errors and `path` before the checkout."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TQDM_DISABLE": "1"} | more
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def prepare(*arguments, **more):
    return python("-m", "mixjax.prepare", *map(str, arguments), **more)


def read(*asked):
    """[(name, split, folder), ...] -> what READ says of each."""
    done = python("-W", "error", "-c", READ, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def complaint(done):
    """The one sentence of a run that was refused."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and not done.stdout
    return line


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the set in both forms, contents.json, and runs.json."""
    folder = tmp_path_factory.mktemp("tfds")
    version = "little/1.2.0"
    runs = {
        "old": [f"--from_dir={folder}/old copy/{version}", f"--data_dir={folder}/new"],
        "short": [f"--from_dir={folder}/short/{version}", f"--data_dir={folder}/none"],
        "tfrecord": [f"--data_dir={folder}/tfrecord"],
        "array_record": [f"--data_dir={folder}/array_record"],
    }
    runs = {name: ["little", *flags] for name, flags in runs.items()}
    runs["unknown"] = ["no_such_set", f"--data_dir={folder}/none"]
    done = python("-c", WRITE + RUN, folder, json.dumps(runs))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(written):
    return json.loads((written / "runs.json").read_text())


@pytest.fixture(scope="module")
def said(written):
    """What is said of sets that cannot be read."""
    asked = {
        "tfrecord": ("tfds:little", "train", "tfrecord"),
        "old": ("tfds:little", "train", "old copy"),
        "unprepared": ("tfds:mnist", "train", "array_record"),
        "unknown": ("tfds:cifar1O", "train", "array_record"),
        "split": ("tfds:little", "tests", "array_record"),
        "part": ("tfds:little", "train+unlabeled", "array_record"),
        "bad slice": ("tfds:little", "train[2:", "array_record"),
        "long slice": ("tfds:little", "train[:90]", "array_record"),
    }
    found = read(*[(n, s, str(written / folder)) for n, s, folder in asked.values()])
    assert all("\n" not in sentence for _, sentence in found)
    return dict(zip(asked, found, strict=True))


@pytest.fixture(scope="module")
def made(written, said):
    """The sets as they are read, once the copy is re-written as its sentence says."""
    command = shlex.split(said["tfrecord"][1].partition("run: ")[2])
    assert command[:3] == ["python", "-m", "mixjax.prepare"]
    done = python(*command[1:])
    assert done.returncode == 0, done.stderr
    folder, more = f"{written}/tfrecord-array_record", f"{written}/more"
    (written / "list.txt").write_text("n/é_2\né_0.jpg\n")
    assert done.stdout.strip() == f"prepared: {folder}/little/1.2.0"
    asked = {
        "train": ("tfds:little", "train", folder),
        "test": ("tfds:little", "test", folder),
        "slice": ("tfds:little", "train[2:4]", folder),
        "sum": ("tfds:little", "train+unlabelled", folder),
        "sum of slices": ("tfds:little", "train[5:] + unlabelled[:50%]", folder),
        "unlabelled": ("tfds:little", "unlabelled", folder),
        "old": ("tfds:little", "train", f"{written}/new"),
        "direct": ("tfds:little:1.2.0", "train", f"{written}/array_record"),
        "part": ("tfds:little", "train+test | part(.5, seed=0)", folder),
        "balanced": ("tfds:little", "train | balanced(.5, seed=0)", folder),
        "pets": ("tfds:pets", "train", f"{written}/more"),
        "listed": ("tfds:pets", f"train | listed('{written}/list.txt')", more),
        "several": ("tfds:many", "train", f"{written}/more"),
    }
    return dict(zip(asked, read(*asked.values()), strict=True))


@needs_tensorflow
@pytest.mark.parametrize("form", ["train", "old", "direct"])
def test_every_example_comes_through_byte_by_byte(written, made, form):
    contents = json.loads((written / "contents.json").read_text())
    classes, train = made[form]
    assert classes == 3 and len(train) == 7
    assert all(contents[data] == label for data, label in train)
    assert len({data for data, _ in train}) == 7


@needs_tensorflow
def test_splits_are_kept_apart(written, made):
    contents = json.loads((written / "contents.json").read_text())
    train, test = made["train"][1], made["test"][1]
    assert {data: label for data, label in train + test} == contents
    assert len(test) == 3 and made["slice"][1] == train[2:4]


@needs_tensorflow
def test_splits_can_be_added(made):
    """As STL-10 is trained on; TFDS marks what has no label with -1."""
    train, unlabelled = made["train"][1], made["unlabelled"][1]
    assert [label for _, label in unlabelled] == [-1] * 4
    assert made["sum"] == [3, train + unlabelled]
    assert made["sum of slices"][1] == train[5:] + unlabelled[:2]


@needs_tensorflow
def test_parts_are_taken_of_what_tfds_reads(made):
    whole = made["train"][1] + made["test"][1]
    classes, part = made["part"]
    assert classes == 3 and len(part) == 5 and all(e in whole for e in part)
    assert sorted(label for _, label in made["balanced"][1]) == [0, 0, 1, 2]


@needs_tensorflow
def test_the_picture_and_the_class_are_known_by_name(written, made):
    """Not the first of their kind; and a picture by its file's name."""
    classes, examples, names, files = made["pets"]
    assert (classes, names) == (3, ["ant", "bee", "cat"])
    assert [label for _, label in examples] == [int(f[2]) for f in files]
    assert sorted(files) == ["é_0.jpg", "é_1.jpg", "é_2.jpg"]
    contents = json.loads((written / "contents.json").read_text())
    assert all(contents[data] == label for data, label in examples)
    assert sorted(made["listed"][3]) == ["é_0.jpg", "é_2.jpg"]


@needs_tensorflow
def test_several_classes_per_picture(made):
    """1 present, -1 only in difficult objects, else 0, as in PASCAL VOC."""
    classes, examples, names, files = made["several"]
    assert (classes, names) == (3, ["ant", "bee", "cat"])
    labels = {file: label for file, (_, label) in zip(files, examples, strict=True)}
    assert labels == {"0.jpg": [-1, 0, 1], "1.jpg": [0, 0, 0], "2.jpg": [0, 1, 0]}


# The sets that representations are transferred to, and ImageNet: classes, file names?
TRANSFER = {"caltech101": (102, True), "cars196": (196, False), "dtd": (47, True)}
TRANSFER |= {"cifar10": (10, False), "cifar100": (100, False), "food101": (101, False)}
TRANSFER |= {"oxford_flowers102": (102, True), "oxford_iiit_pet": (37, True)}
TRANSFER |= {"sun397": (397, True), "voc/2007": (20, True)}
TRANSFER |= {"imagenet2012": (1000, True)}
LABELS = """
import json, sys
import tensorflow_datasets as tfds
from mixjax.data import tfds_sets

found = {}
for name in sys.argv[1:]:
    features = tfds.builder(name, try_gcs=False, data_dir="none").info.features
    classes, several, _ = tfds_sets.labels_of(tfds, features)
    file = any(k in features for k in tfds_sets.FILE_FEATURES)
    found[name] = [len(classes), several, file, "image" in features]
print(json.dumps(found))
"""


def test_what_tfds_says_of_the_sets_for_transfer(tmp_path):
    """Nothing of them is here, but their features are known without TensorFlow."""
    done = python("-W", "error", "-c", LABELS, *TRANSFER)
    assert done.returncode == 0, done.stderr
    wanted = {k: [n, k == "voc/2007", file, True] for k, (n, file) in TRANSFER.items()}
    assert json.loads(done.stdout) == wanted


@needs_tensorflow
def test_what_is_wrong_with_a_split(said):
    kind, sentence = said["split"]
    assert (
        kind == "MissingSplit" and "no split 'tests'; did you mean 'test'" in sentence
    )
    kind, sentence = said["part"]
    assert kind == "MissingSplit"
    assert "no split 'unlabeled'; did you mean 'unlabelled'" in sentence
    for name in ("bad slice", "long slice"):
        kind, sentence = said[name]
        assert kind == "UsageError"
        assert sentence.startswith("data: split 'train[")
        assert "of tfds:little: " in sentence


@needs_tensorflow
def test_an_unprepared_set_is_told_how_to_prepare_it(written, said):
    kind, sentence = said["unprepared"]
    folder = f"{written}/array_record"
    assert kind == "UsageError" and f"not prepared in {folder}/mnist" in sentence
    command = f"python -m mixjax.prepare mnist --data_dir={folder}"
    assert sentence.endswith(f"; run: {command}")


@needs_tensorflow
def test_an_unknown_set_names_the_nearest(said):
    kind, sentence = said["unknown"]
    assert kind == "UsageError" and "; did you mean 'cifar10'" in sentence
    assert sentence.startswith("data.source=tfds:cifar1O: ")


@needs_tensorflow
def test_a_tfrecord_copy_is_told_how_to_rewrite_it(written, said):
    for name, folder in (("tfrecord", "tfrecord"), ("old", "old copy")):
        kind, sentence = said[name]
        assert kind == "UsageError"
        assert "as tfrecord, which has no random access" in sentence
        assert f"set data.directory={written}/{folder}-array_record and" in sentence
        assert shlex.split(sentence.partition("run: ")[2])[3:] == [
            "little",
            f"--from_dir={written}/{folder}/little/1.2.0",
            f"--data_dir={written}/{folder}-array_record",
        ]


@needs_tensorflow
def test_a_copy_is_never_written_over(written):
    copy = written / "tfrecord/little/1.2.0"
    before = sorted((p.name, p.stat().st_mtime_ns) for p in copy.iterdir())
    for root in (written / "tfrecord", written / "tfrecord/little/.."):
        done = prepare("little", f"--from_dir={copy}", f"--data_dir={root}")
        place = f"--from_dir={copy} cannot be converted in place; set --data_dir to"
        assert place in complaint(done)
    done = prepare("little", f"--from_dir={copy}", f"--data_dir={written}/new")
    assert complaint(done) == f"error: {written}/new/little/1.2.0 already exists."
    assert sorted((p.name, p.stat().st_mtime_ns) for p in copy.iterdir()) == before


@needs_tensorflow
def test_a_rewrite_that_fails_leaves_nothing_that_looks_whole(written, runs):
    code, out, _ = runs["short"]
    assert code == "DataLossError" and not out
    assert not (written / "none/little/1.2.0").exists()


@needs_tensorflow
def test_a_tfrecord_copy_is_not_taken_for_a_prepared_set(written, runs):
    code, out, error = runs["tfrecord"]
    copy = f"{written}/tfrecord/little/1.2.0"
    assert (code, out) == (2, "") and f"{copy} holds little in another format" in error
    assert f"--from_dir={copy} and another --data_dir" in error


@needs_tensorflow
def test_a_prepared_set_is_left_as_it_is(written, runs):
    code, out, _ = runs["array_record"]
    assert code == 0
    assert out.strip() == f"prepared: {written}/array_record/little/1.2.0"


@needs_tensorflow
def test_a_name_that_tfds_does_not_know(runs):
    code, out, error = runs["unknown"]
    assert (code, out) == (2, "")
    assert error.strip() == "error: Dataset no_such_set not found."


# --- without TensorFlow --------------------------------------------------------------


@pytest.fixture
def info(tmp_path):
    """A version folder, as far as the first checks look."""

    def write(**fields):
        known = {"name": "little", "version": "1.2.0", "splits": []} | fields
        (tmp_path / "dataset_info.json").write_text(json.dumps(known))
        return f"--from_dir={tmp_path}"

    return write


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "name one data set, such as cifar10."),
        (["a", "b"], "name one data set, such as cifar10."),
        (["a", "--datadir=x"], "Unknown command line flag 'datadir'"),
        (
            ["a", "--from_dir=/no/where"],
            "--from_dir=/no/where has no dataset_info.json",
        ),
    ],
)
def test_wrong_arguments(arguments, says):
    assert says in complaint(prepare(*arguments))


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"fileFormat": "riegeli"}, "is riegeli, not tfrecord."),
        ({"fileFormat": "array_record"}, "is array_record, not tfrecord."),
        ({"name": "large"}, "holds large, not little:1.2.0."),
    ],
)
def test_a_copy_that_cannot_be_rewritten(info, fields, says):
    assert says in complaint(prepare("little:1.2.0", info(**fields)))


@pytest.mark.parametrize("more", [[], ["--from_dir"]])
def test_without_tensorflow_it_says_what_to_install(tmp_path, info, more):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('none here')")
    more = [info(), f"--data_dir={tmp_path}/new"] if more else []
    said = complaint(prepare("little", *more, path=str(tmp_path)))
    assert "needs TensorFlow: pip install -r requirements-prepare.txt" in said
    assert not (tmp_path / "new").exists()


def test_help():
    done = prepare("--help")
    assert done.returncode == 0 and "--from_dir=DIR" in done.stdout
