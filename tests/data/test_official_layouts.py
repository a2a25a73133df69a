"""Sets in the folders of their authors: pictures, classes, and what may be missing."""

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from mixjax import data
from mixjax.data import voc
from mixjax.data.source import MissingSplit
from mixjax.data.sources import open_source
from mixjax.errors import UsageError
from mixjax.evals import knn
from mixjax.sharding import meshes
from mixjax.state import Geometry


def write(*paths):
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (20 * i, 0, 0)).save(path)


def found(source):
    return [source.file(i).rpartition("/")[2] for i in range(source.size)]


# --- FGVC-Aircraft -----------------------------------------------------------------

VARIANTS = ["707-320", "DC-9-30", "F/A-18", "Boeing 717 x"]  # not in sorted order
PLANES = {"train": ["F/A-18", "707-320"], "val": ["Boeing 717 x"], "test": ["F/A-18"]}
PLANES["trainval"] = PLANES["train"] + PLANES["val"]


@pytest.fixture(params=["", "fgvc-aircraft-2013b"])
def aircraft(tmp_path, request):
    """The folder that a config names; the archive's own is at or below it."""
    data = tmp_path / request.param / "data"
    write(*[data / f"images/{n:07}.jpg" for n in range(4)])
    (data / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    (data / "families.txt").write_text("Boeing 707\n")
    number = {"train": 0, "val": 2, "test": 3, "trainval": 0}
    for split, names in PLANES.items():
        lines = [f"{number[split] + i:07} {name}\n" for i, name in enumerate(names)]
        (data / f"images_variant_{split}.txt").write_text("".join(lines))
        (data / f"images_family_{split}.txt").write_text("0000000 Boeing 707\n")
    return tmp_path


@pytest.mark.parametrize("split", PLANES)
def test_aircraft(aircraft, split):
    source = open_source(f"folder:{aircraft}", split, "")
    assert [VARIANTS[label] for label in source.labels] == PLANES[split]
    assert (source.classes, list(source.names)) == (4, VARIANTS)
    assert not source.several and source.name == f"{aircraft.name}/{split}"
    data, label = source.read(0)
    (path,) = aircraft.rglob(found(source)[0])
    assert data == path.read_bytes() and label == source.labels[0]


def test_aircraft_is_whole_in_train_and_val(aircraft):
    joined = open_source(f"folder:{aircraft}", "train + val", "")
    whole = open_source(f"folder:{aircraft}", "trainval", "")
    assert found(joined) == found(whole) == [f"{n:07}.jpg" for n in range(3)]
    assert joined.labels.tolist() == whole.labels.tolist()


def test_a_split_that_aircraft_has_not(aircraft):
    with pytest.raises(MissingSplit, match=r"no split 'tset'; did you mean 'test'"):
        open_source(f"folder:{aircraft}", "tset", "")


@pytest.mark.parametrize(
    "spoil, says",
    [
        (
            lambda data: (data / "images/0000001.jpg").unlink(),
            r"train\.txt are missing \(1 of 2\), such as .*/0000001\.jpg\.$",
        ),
        (
            lambda data: (data / "images").rename(data / "pictures"),
            r"listed in .*train\.txt are missing \(2 of 2\), such as",
        ),
        (
            lambda data: (data / "variants.txt").write_text("707-320\nF/A-1\n"),
            r"0000000 the class 'F/A-18', which variants\.txt .* mean 'F/A-1'",
        ),
        (
            lambda data: (data / "images_variant_train.txt").write_text("\n"),
            r"train\.txt lists no pictures",
        ),
    ],
    ids=["picture", "folder", "class", "empty"],
)
def test_a_broken_aircraft(aircraft, spoil, says):
    spoil(next(aircraft.rglob("variants.txt")).parent)
    with pytest.raises(UsageError, match=says) as caught:
        open_source(f"folder:{aircraft}", "train", "")
    assert str(caught.value).startswith("data: ") and "\n" not in str(caught.value)


# --- PASCAL VOC --------------------------------------------------------------------

# Of a class with the name of a split, too; lines as in the archive.
LINES = {"train": "000005 -1\n000012  1\n000017  0\n", "val": "000001  0\n"}
LINES["trainval"] = "000001  0\n000005 -1\n000012  1\n000017  0\n"
TRAINS = {"train": [0, 1, -1], "val": [-1], "trainval": [-1, 0, 1, -1]}


@pytest.fixture(params=["", "VOC2007", "VOCdevkit/VOC2007"])
def pascal(tmp_path, request):
    """The folder that a config names, of which the test pictures are missing."""
    root = tmp_path / request.param
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    for split, lines in LINES.items():
        absent = "".join(f"{line.split()[0]} -1\n" for line in lines.splitlines())
        (lists / f"{split}.txt").write_text(absent.replace(" -1", ""))
        for name in voc.CLASSES:
            text = lines if name == "train" else absent
            (lists / f"{name}_{split}.txt").write_text(text)
    write(*[root / f"JPEGImages/{n:06}.jpg" for n in (1, 5, 12, 17, 99)])
    return tmp_path


@pytest.mark.parametrize("split", LINES)
def test_voc(pascal, split):
    source = open_source(f"folder:{pascal}", split, "")
    assert source.several and source.classes == 20
    assert source.labels.dtype == np.int8 and source.labels.shape[1] == 20
    train = source.names.index("train")
    assert source.labels[:, train].tolist() == TRAINS[split]
    assert not np.delete(source.labels, train, axis=1).any()
    assert found(source) == [f"{x.split()[0]}.jpg" for x in LINES[split].splitlines()]
    np.testing.assert_array_equal(source.read(0)[1], source.labels[0])


def test_the_twenty_classes():
    assert len(set(voc.CLASSES)) == 20 and sorted(voc.CLASSES) == voc.CLASSES


def test_a_split_that_voc_has_not(pascal):
    says = r"no split 'test'; known: train, trainval, val\."
    with pytest.raises(MissingSplit, match=says):
        open_source(f"folder:{pascal}", "test", "")


@pytest.mark.parametrize(
    "spoil, says",
    [
        (
            lambda root: (root / "JPEGImages/000012.jpg").unlink(),
            r"are missing \(1 of 3\), such as .*/000012\.jpg\.$",
        ),
        (
            lambda root: (root / "ImageSets/Main/dog_train.txt").unlink(),
            r"lists of .* 'train' are missing \(1 of 20\), .*dog_train\.txt\.$",
        ),
        (
            lambda root: (root / "ImageSets/Main/dog_train.txt").write_text("5 1\n"),
            r"dog_train\.txt and .*aeroplane_train\.txt list different pictures",
        ),
        (
            lambda root: (root / "ImageSets/Main/cat_train.txt").write_text("5 2\n"),
            r"line 1 of .*cat_train\.txt must be a picture's name and 1, 0 or -1, "
            "not '5 2'",
        ),
    ],
    ids=["picture", "list", "lists", "label"],
)
def test_a_broken_voc(pascal, spoil, says):
    spoil(next(pascal.rglob("JPEGImages")).parent)
    with pytest.raises(UsageError, match=says) as caught:
        open_source(f"folder:{pascal}", "train", "")
    assert str(caught.value).startswith("data: ") and "\n" not in str(caught.value)


def test_several_labels_per_picture_from_end_to_end(pascal, said):
    """Through configuration; what needs one label per picture says that it has none."""
    root = next(pascal.rglob("JPEGImages")).parent
    write(*[root / f"JPEGImages/{n:06}.jpg" for n in range(16)])
    for name in voc.CLASSES:
        lines = [f"{n:06}  {1 if name == 'cow' else -1}\n" for n in range(16)]
        (root / f"ImageSets/Main/{name}_train.txt").write_text("".join(lines))
    mesh, fields = meshes.make(fsdp=1), quickstart.get_config()
    fields.data.update(
        source=f"folder:{pascal}",
        eval_split="val",
        views=("decode_crop(8) | flip",) * 2,
        eval_view="decode_center(8, resize_to=8)",
        on_device=False,
    )
    sets = data.make(fields.data, batch=8, seed=0, mesh=mesh)
    assert sets.several and "20 classes, several per picture, " in sets.describe()
    geometry = Geometry((8, 8), channels=3, patch=8, grid=(1, 1), any_size=False)
    example = sets.example(geometry)
    assert (example["label"].shape, example["label"].dtype) == ((1, 20), np.int32)
    (batch,) = sets.train.batches(0, 1)
    wanted = np.arange(20) == voc.CLASSES.index("cow")
    np.testing.assert_array_equal(batch["label"], np.tile(wanted, (8, 1)))
    context = {"sets": sets, "method": None, "mesh": mesh, "check": None}
    how = {"k": 1, "temperature": 0.1, "bank": 0, "queries": 0, "chunk": 8}
    assert knn.make(vote="weighted", **how, **context) is None
    assert "the data has several labels per picture: no kNN" in said


# --- ImageNet-A and ImageNet-C -----------------------------------------------------

WNIDS = ("n02", "n01", "n10")


def test_imagenet_a(tmp_path):
    """Class folders, beside a text; the split "" is the folder itself."""
    root = tmp_path / "imagenet-a"
    write(*[root / f"{wnid}/0.00{n}_a _ b.jpg" for wnid in WNIDS for n in (0, 1)])
    (root / "README.txt").write_text("n01 one\n")
    for split in ("", "train"):
        source = open_source(f"folder:{root}", split, "")
        assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert source.names == ("n01", "n02", "n10")
    assert open_source(f"folder:{root}", "", "").name == "imagenet-a"


def test_imagenet_c(tmp_path):
    root = tmp_path / "imagenet-c"
    kinds = [f"{kind}/{n}" for kind in ("gaussian_noise", "fog") for n in (1, 3)]
    write(*[root / f"{kind}/{wnid}/1.JPEG" for kind in kinds for wnid in WNIDS])
    source = open_source(f"folder:{root}", "gaussian_noise/3", "")
    assert source.names == ("n01", "n02", "n10") and source.labels.tolist() == [0, 1, 2]
    assert all("/gaussian_noise/3/" in source.title(i) for i in range(3))
    assert source.name == "imagenet-c/gaussian_noise/3"
    with pytest.raises(MissingSplit, match=r"no folder fog/2"):
        open_source(f"folder:{root}", "fog/2", "")
