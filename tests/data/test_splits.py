"""Parts and sums of splits: what is taken, and what is said when nothing can be."""

import numpy as np
import pytest
from PIL import Image

from mixjax.data import pipeline
from mixjax.data.source import MissingSplit, all_labels, from_arrays, join, subset
from mixjax.data.sources import open_source
from mixjax.data.splits import parse, take
from mixjax.data.views import parse as parse_view
from mixjax.errors import UsageError
from mixjax.sharding import meshes

COUNTS = (100, 25, 4, 1)  # of the classes
LABELS = np.random.default_rng(0).permutation(np.repeat(range(4), COUNTS))
IMAGES = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None]  # its own number


@pytest.fixture
def npz(tmp_path):
    """How a config calls a file with splits `train`, `val`, and `bare` of no labels."""
    arrays = {"train_image": IMAGES, "train_label": LABELS}
    arrays |= {"val_image": IMAGES[:6] + 200, "val_label": np.arange(6) % 4}
    np.savez(tmp_path / "set.npz", **arrays, bare_image=IMAGES)
    return f"npz:{tmp_path}/set.npz"


def numbers(source):
    return [int(source.read(i)[0].item()) for i in range(source.size)]


def counts(source):
    return np.bincount(source.labels, minlength=4).tolist()


# --- operations --------------------------------------------------------------------


@pytest.mark.parametrize(
    "share, wanted",
    [(0.1, [10, 3, 1, 1]), (0.01, [1, 1, 1, 1]), (0.5, [50, 13, 2, 1])],
)
def test_a_balanced_share_of_every_class(npz, share, wanted):
    """Rounded to the nearest, and one at the least: 2.5 of 25 are 3, 0.4 of 4 are 1."""
    source = open_source(npz, f"train | balanced({share}, seed=0)", "")
    assert counts(source) == wanted and source.classes == 4
    assert [int(LABELS[n]) for n in numbers(source)] == source.labels.tolist()
    assert numbers(source) == sorted(set(numbers(source)))


def test_draws_are_a_function_of_the_seed(npz):
    def drawn(text):
        return numbers(open_source(npz, f"train | {text}", ""))

    for op in ("balanced", "part"):
        assert drawn(f"{op}(.3, seed=1)") == drawn(f"{op}(.3, 1)")
        assert drawn(f"{op}(.3, seed=1)") != drawn(f"{op}(.3, seed=2)")
        assert set(drawn(f"{op}(.1, 0)")) < set(drawn(f"{op}(.3, 0)"))


def test_draws_are_random(npz):
    """Not the first ones, in the whole or of a class: chance of that is below 1e-9."""
    first = set(range(39))
    assert set(numbers(open_source(npz, "train | part(.3, 0)", ""))) != first
    source = open_source(npz, "train | balanced(.3, seed=0)", "")
    members = np.flatnonzero(LABELS == 0)[:30].tolist()
    assert [n for n in numbers(source) if LABELS[n] == 0] != members


def test_classes_draw_apart():
    """Else of classes of one size, one after the other, the same places are taken."""
    source = from_arrays("even", IMAGES[:100], np.repeat(range(4), 25))
    taken = take(source, parse("train | balanced(.5, seed=0)", "data.split"))
    places = [sorted(n % 25 for n in numbers(taken) if n // 25 == c) for c in range(4)]
    assert len(set(map(tuple, places))) == 4


def test_part_and_rest_make_the_whole(npz):
    part = numbers(open_source(npz, "train | part(.8, seed=3)", ""))
    rest = numbers(open_source(npz, "train | rest(.8, seed=3)", ""))
    assert (len(part), len(rest)) == (104, 26)
    assert sorted(part + rest) == list(range(130))


def test_operations_compose_left_to_right(npz):
    """A tenth of four fifths is another thing than four fifths of a tenth."""
    text = "train | part(.8, seed=0) | balanced(.1, seed=0)"
    source = open_source(npz, text, "")
    part = open_source(npz, "train | part(.8, seed=0)", "")
    assert set(numbers(source)) < set(numbers(part))
    wanted = [max(int(0.1 * n + 0.5), min(n, 1)) for n in counts(part)]
    assert counts(source) == wanted
    other = open_source(npz, "train | balanced(.1, seed=0) | part(.8, seed=0)", "")
    assert numbers(other) != numbers(source)


def test_a_part_says_what_was_taken(npz):
    source = open_source(npz, "train | part(.8, seed=0) | balanced(.1, seed=0)", "")
    assert source.name == "set.npz/train | part(.8, seed=0) | balanced(.1, seed=0)"
    assert source.title(0) == f"set.npz/train, example {numbers(source)[0]}"
    assert open_source(npz, "train", "").name == "set.npz/train"


def test_unlabelled_examples_are_in_no_class():
    source = from_arrays("some", IMAGES, np.where(LABELS == 1, -1, LABELS))
    taken = take(source, parse("train | balanced(.5, seed=0)", "data.split"))
    assert np.unique(taken.labels, return_counts=True)[1].tolist() == [50, 2, 1]


@pytest.mark.parametrize(
    "split, says",
    [
        ("train | blanced(.1, 0)", r"no operation 'blanced'; did you mean 'balanced'"),
        ("train | balanced(0, seed=0)", r"share=0 is not between 0 and 1"),
        ("train | balanced(1, seed=0)", r"share=1 is not between 0 and 1"),
        ("train | rest(1.5, seed=0)", r"share=1\.5 is not between 0 and 1"),
        ("train | part(.5, seed=-1)", r"seed=-1 is negative"),
        ("train | part(.5)", r"part: missing .* 'seed'; it takes share, seed"),
        ("train | part(.5, sed=0)", r"no argument 'sed'; did you mean 'seed'"),
        ("train | part('a', seed=0)", r"part takes share as float, not 'a'"),
        ("train |", r"is not a split \(invalid syntax"),
        ("train | part(.5, 0) + val", r"is not a split .* is not an operation"),
        ("bare | balanced(.1, seed=0)", r"set\.npz/bare has no labels"),
        ("train | part(.001, seed=0)", r"selects none of the 130 examples of set\.npz"),
        ("train | listed('no.txt')", r"the file no\.txt does not exist"),
    ],
)
def test_what_is_wrong_with_an_operation(npz, split, says):
    with pytest.raises(UsageError, match=says) as caught:
        open_source(npz, split, "")
    assert str(caught.value).startswith(f"data.split={split!r}")
    assert "\n" not in str(caught.value)


def test_the_field_of_a_held_out_split_is_named(npz):
    with pytest.raises(UsageError, match=r"^data\.eval_split='val \| prt\(\.5, 0\)': "):
        open_source(npz, "val | prt(.5, 0)", "", "data.eval_split")


# --- listed ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name in ("b/n2_1.JPEG", "a/n1_1.JPEG", "a/n1_10.JPEG", "b/v1.2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(root / name)
    return root


def listed(folder, text):
    (folder.parent / "list.txt").write_text(text)
    split = f"train | listed({str(folder.parent / 'list.txt')!r})"
    source = open_source(f"folder:{folder}", split, "")
    return [source.title(i).rpartition("/")[2] for i in range(source.size)], source


def test_listed_pictures(folder):
    """Whatever their order, folders and ending in the list; in that of the source."""
    lines = "v1.2.png\nn2_1.JPEG\n\n  x/n1_10  \nv1.2.png\n"
    found, source = listed(folder, lines)
    assert found == ["n1_10.JPEG", "n2_1.JPEG", "v1.2.png"]
    assert source.classes == 2 and source.labels.tolist() == [0, 1, 1]
    assert source.names == ("a", "b")


@pytest.mark.parametrize(
    "lines, says",
    [
        (
            "n1_1\nn3_1.JPEG\nn4\n",
            r"names in .*match no .* \(2 of 3\), such as 'n3_1\.JPEG'",
        ),
        (" \n", r"list\.txt lists no pictures"),
    ],
)
def test_a_list_that_does_not_fit(folder, lines, says):
    with pytest.raises(UsageError, match=says) as caught:
        listed(folder, lines)
    assert str(caught.value).startswith('data.split="train | listed(')


def test_a_listed_name_must_be_one_picture(folder):
    (folder / "b/n1_1.JPEG").write_bytes((folder / "a/n1_1.JPEG").read_bytes())
    with pytest.raises(UsageError, match=r"lists 'n1_1', but 2 pictures of set/train"):
        listed(folder, "n1_1.JPEG\nn2_1.JPEG\n")
    assert listed(folder, "n2_1.JPEG\n")[0] == ["n2_1.JPEG"]


def test_a_list_needs_file_names(npz, tmp_path):
    (tmp_path / "list.txt").write_text("0\n")
    with pytest.raises(
        UsageError, match=r"the examples of set\.npz/train have no file"
    ):
        open_source(npz, f"train | listed({str(tmp_path / 'list.txt')!r})", "")


# --- sums --------------------------------------------------------------------------


def test_a_sum_of_splits(npz):
    source = open_source(npz, "val + train+val", "")
    assert numbers(source) == [*range(200, 206), *range(130), *range(200, 206)]
    assert [source.read(i)[1] for i in range(142)] == source.labels.tolist()
    assert source.labels.tolist() == [0, 1, 2, 3, 0, 1, *LABELS, 0, 1, 2, 3, 0, 1]
    assert source.title(6) == "set.npz/train, example 0" and source.classes == 4
    assert source.name == "set.npz/val + set.npz/train + set.npz/val"


def test_a_part_of_a_sum(npz):
    source = open_source(npz, "train + val | rest(.5, seed=0)", "")
    assert source.size == 68 and max(numbers(source)) >= 200 > min(numbers(source))


def test_a_sum_of_folders(folder):
    (folder / "train").mkdir()
    for name in "ab":
        (folder / name).rename(folder / "train" / name)
    for name in ("val/a/x.png", "val/b/y.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(folder / name)
    source = open_source(f"folder:{folder}", "train + val", "")
    assert source.labels.tolist() == [0, 0, 1, 1, 0, 1] and source.images is None
    assert source.title(4) == source.file(4) == str(folder / "val/a/x.png")
    (folder / "val/b").rename(folder / "val/c")
    with pytest.raises(UsageError, match=r"set/train has a class 'b' where .* 'c'"):
        open_source(f"folder:{folder}", "train + val", "")


def test_only_what_fits_is_joined(npz):
    with pytest.raises(
        UsageError, match=r"train has 4 classes but set\.npz/bare has 0;"
    ):
        open_source(npz, "train + bare", "")
    with pytest.raises(MissingSplit, match="no array tset_image"):
        open_source(npz, "train + tset", "")
    wide = from_arrays("wide", np.zeros((2, 3, 1, 1), np.uint8), None)
    with pytest.raises(
        UsageError, match=r"of narrow \+ wide .* \(1, 1, 1\) and \(3, 1"
    ):
        join([from_arrays("narrow", IMAGES, None), wide])


# --- several labels per picture ----------------------------------------------------

SEVERAL = np.random.default_rng(1).integers(-1, 2, (10, 3)).astype(np.int8)


def several():
    images = np.random.default_rng(2).integers(0, 256, (10, 4, 4, 3), np.uint8)
    return from_arrays("many", images, SEVERAL)


def test_labels_of_several_kinds():
    source = several()
    assert source.several and source.classes == 3
    np.testing.assert_array_equal(source.read(4)[1], SEVERAL[4])
    part = subset(join([source, source]), np.array([13, 2]))
    assert part.several and part.classes == 3
    np.testing.assert_array_equal(all_labels(part), SEVERAL[[3, 2]])
    with pytest.raises(
        UsageError, match=r"many has several labels per picture but one"
    ):
        join([source, from_arrays("one", source.images, np.arange(10) % 3)])
    with pytest.raises(UsageError, match=r"many has several labels per picture\.$"):
        take(source, parse("train | balanced(.5, seed=0)", "data.split"))


@pytest.mark.parametrize("view", ["flip", "decode | flip"])
@pytest.mark.parametrize("on_device", [False, True])
def test_batches_of_several_labels(view, on_device):
    """From arrays, through the reader, and kept on the devices."""
    mesh, view = meshes.make(fsdp=1), parse_view(view, "data.views[0]")
    source = several()
    if on_device:
        source = pipeline.load_on_devices(source, view, mesh, threads=1)
        assert source.several and source.classes == 3
        view = view._replace(host=None)
    loaded = pipeline.make(
        source, views=[view], batch=8, seed=0, mesh=mesh, threads=1, prefetch=1
    )
    for batch in (*loaded.batches(0, 2), *loaded.sweep()):
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], SEVERAL[batch["index"] % 10])
