"""Digits, arrays and folders: what is found, and what is said when it is not."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from mixjax import data
from mixjax.data.source import MissingSplit, subset
from mixjax.data.sources import open_source
from mixjax.errors import UsageError
from mixjax.sharding import meshes


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UsageError, match=r"data\.source 'foldr' .* mean 'folder'\?"):
        open_source("foldr:/tmp", "train", "")


# --- digits --------------------------------------------------------------------------


@pytest.mark.parametrize("split, size", [("train", 1437), ("test", 360)])
def test_digits(split, size):
    source = open_source("digits", split, "")
    assert (source.size, source.classes) == (size, 10)
    assert source.images.shape == (size, 8, 8, 1) and source.images.dtype == np.uint8
    assert (source.images.min(), source.images.max()) == (0, 255)
    assert set(source.labels.tolist()) == set(range(10))
    image, label = source.read(5)
    np.testing.assert_array_equal(image, source.images[5])
    assert label == source.labels[5]


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = datasets.load_digits()
    whole = [open_source("digits", split, "") for split in ("train", "test")]
    images = np.concatenate([s.images for s in whole])[..., 0]
    np.testing.assert_array_equal(images, (wanted.images * 255 // 16).astype(np.uint8))
    np.testing.assert_array_equal(
        np.concatenate([s.labels for s in whole]), wanted.target
    )


def test_digits_have_two_splits():
    with pytest.raises(MissingSplit, match=r"no split 'tset'; did you mean 'test'\?"):
        open_source("digits", "tset", "")


# --- npz -----------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 2, 1, 2, 0, 1], np.uint8)


@pytest.fixture
def npz(tmp_path):
    """Writes arrays to a file and returns how a config calls it."""

    def write(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path}/set.npz"

    return write


def test_npz(npz):
    name = npz(train_image=IMAGES, train_label=LABELS, test_image=IMAGES[:2])
    source = open_source(name, "train", "")
    assert (source.size, source.classes) == (6, 3)
    image, label = source.read(3)
    np.testing.assert_array_equal(image, IMAGES[3])
    assert (label, type(label)) == (2, int)
    assert "3" in source.title(3) and "set.npz" in source.title(3)


def test_npz_without_labels(npz):
    source = open_source(npz(test_image=IMAGES[:2]), "test", "")
    assert (source.size, source.classes, source.labels) == (2, 0, None)
    assert source.read(1)[1] == -1


def test_npz_of_grey_images_without_channels(npz):
    source = open_source(npz(train_image=IMAGES[..., 0]), "train", "")
    assert source.images.shape == (6, 4, 5, 1)


def test_npz_in_the_home_folder(npz, tmp_path, monkeypatch):
    npz(train_image=IMAGES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("npz:~/set.npz", "train", "").size == 6


def test_npz_without_the_split(npz):
    name = npz(train_image=IMAGES, val_image=IMAGES)
    with pytest.raises(MissingSplit, match=r"no array test_image; .*train, val\."):
        open_source(name, "test", "")
    with pytest.raises(MissingSplit, match="its splits: none"):
        open_source(npz(images=IMAGES), "test", "")


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"train_image": IMAGES / 255.0}, r"float64 \(6, 4, 5, 3\), not uint8"),
        ({"train_image": IMAGES[0, 0]}, r"uint8 \(5, 3\), not uint8 \[N, H, W, C\]"),
        (
            {"train_image": IMAGES, "train_label": LABELS[:4]},
            "6 train images but 4 labels",
        ),
        (
            {"train_image": IMAGES, "train_label": LABELS[:, None]},
            r"train_label of .* is uint8 \(6, 1\), not integers \[N\]",
        ),
        (
            {"train_image": IMAGES, "train_label": LABELS / 2},
            r"train_label of .* is float64 \(6,\), not integers",
        ),
    ],
)
def test_npz_with_wrong_arrays(npz, arrays, says):
    with pytest.raises(UsageError, match=says):
        open_source(npz(**arrays), "train", "")


def test_npz_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"npz:.*no\.npz: there is no such file"):
        open_source(f"npz:{tmp_path}/no.npz", "train", "")


class Trap:
    """Something that must not be unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_npz_is_never_unpickled(tmp_path):
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(tmp_path / "set.npz", train_image=trap)
    with pytest.raises(UsageError, match=r"set\.npz cannot be read: .*allow_pickle"):
        open_source(f"npz:{tmp_path}/set.npz", "train", "")


def zip_with_a_flipped_byte():
    file = io.BytesIO()
    np.savez(file, train_image=IMAGES)
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 255
    return bytes(data)


def half_a_zip():
    file = io.BytesIO()
    np.savez(file, train_image=IMAGES)
    return file.getvalue()[:300]


def one_array():
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


@pytest.mark.parametrize(
    "data, says",
    [
        (zip_with_a_flipped_byte(), r"npz:.*set\.npz cannot be read: .*CRC"),
        (half_a_zip(), r"npz:.*set\.npz is not a complete \.npz file"),
        (one_array(), r"npz:.*set\.npz is not a complete \.npz file"),
        (b"", r"npz:.*set\.npz is not a complete \.npz file"),
        (b"no archive at all", r"npz:.*set\.npz is not a complete \.npz file"),
    ],
    ids=["flipped", "half", "npy", "empty", "text"],
)
def test_npz_that_is_none(tmp_path, data, says):
    path = tmp_path / "set.npz"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        open_source(f"npz:{path}", "train", "")


# --- folders -------------------------------------------------------------------------


def write(*paths):
    """Pictures at these places, each of a colour of its own."""
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (40 * i, 0, 0)).save(path)


def found(source):
    return [Path(source.title(i)).name for i in range(source.size)]


def test_a_flat_folder(tmp_path):
    write(tmp_path / "b.png", tmp_path / "a.jpg", tmp_path / "c.webp")
    source = open_source(f"folder:{tmp_path}", "train", "")
    assert found(source) == ["a.jpg", "b.png", "c.webp"]
    assert (source.size, source.classes, source.images) == (3, 0, None)
    assert source.read(0) == ((tmp_path / "a.jpg").read_bytes(), -1)


def test_class_folders(tmp_path):
    write(
        tmp_path / "dog/2.png", tmp_path / "cat/1.png", tmp_path / "cat/deep/er/0.png"
    )
    source = open_source(f"folder:{tmp_path}", "train", "")
    assert found(source) == ["1.png", "0.png", "2.png"]
    assert source.classes == 2 and source.labels.tolist() == [0, 0, 1]
    assert source.read(2)[1] == 1


def test_pictures_beside_folders_or_in_a_single_one_are_no_classes(tmp_path):
    write(tmp_path / "dog/2.png", tmp_path / "cat/1.png", tmp_path / "0.png")
    assert open_source(f"folder:{tmp_path}", "train", "").classes == 0
    assert open_source(f"folder:{tmp_path}", "train", "").size == 3
    (tmp_path / "0.png").unlink()
    (tmp_path / "cat/1.png").unlink()
    assert open_source(f"folder:{tmp_path}", "train", "").classes == 0


def test_split_folders(tmp_path):
    write(*[tmp_path / f"train/{c}/{n}.png" for c in "ab" for n in range(2)])
    write(*[tmp_path / f"val/{c}/{n}.png" for c in "ab" for n in range(1)])
    assert open_source(f"folder:{tmp_path}", "train", "").size == 4
    for split in ("val", "test", "validation"):  # names of the same thing
        assert open_source(f"folder:{tmp_path}", split, "").size == 2
    with pytest.raises(MissingSplit, match="no folder extra"):
        open_source(f"folder:{tmp_path}", "extra", "")


def test_a_folder_without_splits_is_for_training(tmp_path):
    write(tmp_path / "0.png")
    assert open_source(f"folder:{tmp_path}", "train", "").size == 1
    with pytest.raises(MissingSplit, match="no folder test"):
        open_source(f"folder:{tmp_path}", "test", "")


def test_a_held_out_part_alone_is_not_for_training(tmp_path):
    write(tmp_path / "val/0.png")
    with pytest.raises(MissingSplit, match="no folder train"):
        open_source(f"folder:{tmp_path}", "train", "")


def test_two_names_of_the_held_out_part_are_kept_apart(tmp_path):
    write(tmp_path / "val/0.png", tmp_path / "test/0.png", tmp_path / "test/1.png")
    assert open_source(f"folder:{tmp_path}", "val", "").size == 1
    assert open_source(f"folder:{tmp_path}", "test", "").size == 2
    with pytest.raises(MissingSplit, match="no folder validation"):
        open_source(f"folder:{tmp_path}", "validation", "")


def test_other_files_are_left_out_and_counted(tmp_path, caplog):
    write(tmp_path / "a/1.PNG", tmp_path / "a/2.JpEg", tmp_path / "b/3.png")
    write(tmp_path / "a/.hidden.png", tmp_path / ".git/4.png")
    for name in ("readme.txt", "a/labels.csv", "b/noextension", "a/.DS_Store"):
        (tmp_path / name).write_text("no picture")
    with caplog.at_level(logging.INFO, logger="mixjax"):
        source = open_source(f"folder:{tmp_path}", "train", "")
    assert found(source) == ["1.PNG", "2.JpEg", "3.png"] and source.classes == 2
    said = f"folder:{tmp_path}: 3 pictures, 3 other files left out"
    assert caplog.messages == [said]


def test_a_folder_of_nothing_else_needs_no_word(tmp_path, caplog):
    write(tmp_path / "1.png")
    with caplog.at_level(logging.INFO, logger="mixjax"):
        open_source(f"folder:{tmp_path}", "train", "")
    assert caplog.messages == []


def test_links_are_followed_but_never_in_circles(tmp_path):
    write(tmp_path / "set/a/1.png", tmp_path / "elsewhere/2.png", tmp_path / "3.png")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/4.png").symlink_to(tmp_path / "3.png")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/dangling.png.d").symlink_to(tmp_path / "nowhere")
    source = open_source(f"folder:{tmp_path}/set", "train", "")
    assert found(source) == ["1.png", "2.png", "4.png"]
    assert source.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("inside", ["", "readme.txt", "sub/.hidden.png"])
def test_a_folder_without_pictures(tmp_path, inside):
    (tmp_path / "sub").mkdir()
    if inside:
        (tmp_path / inside).write_text("no picture")
    with pytest.raises(UsageError, match=r"holds no picture \(\.bmp .*\.webp\)"):
        open_source(f"folder:{tmp_path}", "train", "")


def test_a_missing_folder_names_the_nearest(tmp_path):
    write(tmp_path / "photographs/1.png")
    says = r"folder:.*photograph: there is no such folder; did you mean 'photographs'"
    with pytest.raises(UsageError, match=says):
        open_source(f"folder:{tmp_path}/photograph", "train", "")
    with pytest.raises(UsageError, match=r"there is no such folder\.$"):
        open_source(f"folder:{tmp_path}/no/where", "train", "")


# --- Tiny-ImageNet -------------------------------------------------------------------

WNIDS = ("n03", "n01", "n02")  # as in the archive, not sorted
VAL = {"val_0.JPEG": "n02", "val_1.JPEG": "n01", "val_10.JPEG": "n03"}


@pytest.fixture
def tiny(tmp_path):
    """The archive's folder with three classes, of which training shows two."""
    root = tmp_path / "tiny-imagenet-200"
    write(*[root / f"train/{c}/images/{c}_{n}.JPEG" for c in WNIDS[:2] for n in (0, 1)])
    for c in WNIDS[:2]:
        (root / f"train/{c}/{c}_boxes.txt").write_text(f"{c}_0.JPEG\t0\t0\t2\t1\n")
    write(*[root / f"val/images/{name}" for name in VAL])
    write(*[root / f"test/images/test_{n}.JPEG" for n in range(2)])
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = [f"{name}\t{c}\t0\t0\t2\t1\n" for name, c in reversed(VAL.items())]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tiny):
    """One numbering of the classes for both splits, though training lacks one."""
    train = open_source(f"folder:{tiny}", "train", "")
    assert found(train) == ["n01_0.JPEG", "n01_1.JPEG", "n03_0.JPEG", "n03_1.JPEG"]
    assert train.classes == 3 and train.labels.tolist() == [0, 0, 2, 2]
    val = open_source(f"folder:{tiny}", "val", "")
    assert found(val) == ["val_0.JPEG", "val_1.JPEG", "val_10.JPEG"]
    assert val.classes == 3 and val.labels.tolist() == [1, 0, 2]
    assert val.read(2) == ((tiny / "val/images/val_10.JPEG").read_bytes(), 2)
    assert type(val.read(2)[1]) is int


def test_the_test_pictures_of_tiny_imagenet_have_no_labels(tiny):
    source = open_source(f"folder:{tiny}", "test", "")
    assert (source.size, source.classes, source.labels) == (2, 0, None)
    with pytest.raises(MissingSplit, match="no folder validation"):
        open_source(f"folder:{tiny}", "validation", "")


def test_validation_pictures_in_class_folders(tiny):
    """As many sort them."""
    for name, c in VAL.items():
        (tiny / f"val/{c}").mkdir()
        (tiny / f"val/images/{name}").rename(tiny / f"val/{c}/{name}")
    (tiny / "val/val_annotations.txt").unlink()
    source = open_source(f"folder:{tiny}", "val", "")
    assert found(source) == ["val_1.JPEG", "val_0.JPEG", "val_10.JPEG"]
    assert source.labels.tolist() == [0, 1, 2]


def annotations(tiny, lines):
    (tiny / "val/val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize(
    "spoil, split, says",
    [
        (
            lambda tiny: (tiny / "val/val_annotations.txt").unlink(),
            "val",
            r"val has no val_annotations\.txt, which names the classes",
        ),
        (
            lambda tiny: annotations(tiny, [f"{name}\tn04\n" for name in VAL]),
            "val",
            r"val_0\.JPEG is of class 'n04', which .*wnids\.txt does not list; did you "
            r"mean 'n0\d'",
        ),
        (
            lambda tiny: annotations(tiny, ["val_0.JPEG\tn01\n", "\n", "val_1.JPEG"]),
            "val",
            r"line 3 of .*val_annotations\.txt does not name a class",
        ),
        (
            lambda tiny: (tiny / "val/images/val_1.JPEG").unlink(),
            "val",
            r"\(listed but missing: 1, not listed: 0\), such as "
            r".*val_1\.JPEG\.",
        ),
        (
            lambda tiny: write(tiny / "val/images/val_2.JPEG"),
            "val",
            r"missing: 0, not listed: 1\), such as .*val_2\.JPEG\.",
        ),
        (
            lambda tiny: (tiny / "train/n01").rename(tiny / "train/n011"),
            "train",
            r"n01_0\.JPEG is of class 'n011', which .* did you mean 'n01'",
        ),
    ],
    ids=["no annotations", "class", "short line", "absent", "left out", "folder"],
)
def test_a_broken_tiny_imagenet(tiny, spoil, split, says):
    spoil(tiny)
    with pytest.raises(UsageError, match=says) as caught:
        open_source(f"folder:{tiny}", split, "")
    assert str(caught.value).startswith("data: ") and "\n" not in str(caught.value)


# --- parts ---------------------------------------------------------------------------


def test_subset_of_arrays(npz):
    whole = open_source(npz(train_image=IMAGES, train_label=LABELS), "train", "")
    part = subset(whole, np.array([4, 1, 1]))
    assert (part.size, part.classes) == (3, 3)
    np.testing.assert_array_equal(part.images, IMAGES[[4, 1, 1]])
    assert part.labels.tolist() == [0, 2, 2]
    np.testing.assert_array_equal(part.read(0)[0], IMAGES[4])
    assert part.title(1) == whole.title(1) and part.title(0) == whole.title(4)


def test_subset_of_a_folder(tmp_path):
    write(*[tmp_path / f"{c}/{n}.png" for c in "ab" for n in range(2)])
    whole = open_source(f"folder:{tmp_path}", "train", "")
    part = subset(whole, np.array([3, 0]))
    assert (part.size, part.images) == (2, None)
    assert part.read(0) == whole.read(3) and part.labels.tolist() == [1, 0]


def test_splits_with_other_classes_are_refused(tmp_path):
    """A held-out part without one of the classes: its labels would be shifted."""
    for place in ("train/ant", "train/bee", "train/cat", "test/bee", "test/cat"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    c = quickstart.get_config().data
    c.source, c.views = f"folder:{tmp_path}", ("decode",)
    c.eval_view, c.on_device = "decode", False
    sets = data.make(c, batch=1, seed=0, mesh=meshes.make(fsdp=1))
    with pytest.raises(UsageError, match=r"classes of .* differ, such as \['ant'\]"):
        sets.test(0)
