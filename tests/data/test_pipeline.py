"""Batches: a function of seed and step, whole epochs, and what broken files do."""

import logging

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from PIL import Image

from mixjax import data
from mixjax.data import pipeline, sources
from mixjax.data.source import from_arrays, subset
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.sharding import meshes
from mixjax.state import Geometry

SIZE, BATCH = 20, 8  # two whole batches and four left over
CROPS = ("decode_crop(6, scale=(.3, 1)) | flip | normalize",)
few = settings(max_examples=30, deadline=None)


def mesh_of(count, fsdp=1):
    return jax.make_mesh(
        (count // fsdp, fsdp),
        meshes.BATCH,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:count],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of unequal sizes; the red of picture i is 10 * i."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(SIZE):
        image = rng.integers(0, 256, (9 + i % 3, 12, 3), np.uint8)
        image[:, :, 0] = 10 * i
        Image.fromarray(image).save(path / f"{i:02}.png")
    return path


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SIZE, 8, 8, 3), np.uint8)
    return from_arrays("arrays", images, np.arange(SIZE) % 3)


def open_folder(path):
    return sources.open_source(f"folder:{path}", "train", "")


def make(source, views=CROPS, *, seed=0, threads=2, mesh=None, batch=BATCH):
    return pipeline.make(
        source,
        views=[parse(v, f"data.views[{i}]") for i, v in enumerate(views)],
        batch=batch,
        seed=seed,
        mesh=mesh or mesh_of(8),
        threads=threads,
        prefetch=2,
    )


def fetched(batches):
    return [jax.device_get(batch) for batch in batches]


def assert_equal(some, others):
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def indices(batches):
    return np.concatenate([b["index"] for b in batches]).tolist()


# --- order ---------------------------------------------------------------------------


@few
@given(st.integers(0, 2**31), st.integers(0, 10_000), st.integers(1, 3000))
def test_order_is_a_permutation(seed, epoch, size):
    found = pipeline.permute_epoch(seed, epoch, size)
    np.testing.assert_array_equal(np.sort(found), np.arange(size))
    pipeline.permute_epoch.cache_clear()
    np.testing.assert_array_equal(pipeline.permute_epoch(seed, epoch, size), found)


@few
@given(st.integers(0, 2**31), st.integers(0, 10_000), st.integers(50, 3000))
def test_order_differs_by_epoch_and_by_seed(seed, epoch, size):
    """Each place keeps its example with chance 1 / size, so one place on average."""
    found = pipeline.permute_epoch(seed, epoch, size)
    for other in ((seed, epoch + 1), (seed + 1, epoch), (epoch + 50_000, seed)):
        assert (pipeline.permute_epoch(*other, size) == found).sum() < 12


def on_device(arrays):
    return pipeline.load_on_devices(
        arrays, parse("flip", "eval"), mesh_of(8), threads=1
    )


@pytest.fixture(params=["folder", "arrays", "on_device"])
def source(request, folder, arrays):
    if request.param == "folder":
        return open_folder(folder)
    return arrays if request.param == "arrays" else on_device(arrays)


def views_of(source):
    return CROPS if source.images is None else ("crop(6) | flip",)


def test_an_epoch_holds_each_example_once_but_the_remainder(source):
    loaded = make(source, views_of(source))
    assert loaded.steps_per_epoch == 2
    seen = indices(fetched(loaded.batches(0, 12)))
    epochs = [seen[i : i + 16] for i in range(0, 96, 16)]
    assert all(len(set(e)) == 16 and set(e) <= set(range(SIZE)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6
    assert set(seen) == set(range(SIZE))  # those left out differ as well


def test_batches_carry_what_belongs_to_the_index(folder):
    view = ("decode_center(8, resize_to=8)",)
    for batch in fetched(make(open_folder(folder), view).batches(0, 3)):
        red = batch["images"][0][:, :, :, 0]
        assert (red == 10 * batch["index"][:, None, None]).all()
        assert (batch["label"] == -1).all() and batch["label"].dtype == np.int32


def test_batches_of_arrays_carry_what_belongs_to_the_index(arrays):
    for batch in fetched(make(arrays, ("flip",)).batches(0, 3)):
        np.testing.assert_array_equal(batch["images"][0], arrays.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


# --- the same batches, whatever else -------------------------------------------------


def test_from_any_step_on_the_batches_are_the_same(source):
    loaded = make(source, views_of(source))
    whole = fetched(loaded.batches(0, 7))
    assert_equal(fetched(loaded.batches(3, 7)), whole[3:])
    assert_equal(fetched(loaded.batches(6, 7)), whole[6:])
    assert fetched(loaded.batches(7, 7)) == []


def test_a_far_step_is_reached_at_once(folder):
    """Ten million steps on: nothing on the way is read or shuffled."""
    loaded = make(open_folder(folder))
    far = 10**7
    (batch,) = fetched(loaded.batches(far, far + 1))
    wanted = pipeline.permute_epoch(0, far // 2, SIZE)[:BATCH]
    assert batch["index"].tolist() == wanted.tolist()


def test_seeds_differ_in_order_and_in_crops(folder):
    batches = {
        s: fetched(make(open_folder(folder), seed=s).batches(0, 2)) for s in (0, 1)
    }
    assert indices(batches[0]) != indices(batches[1])
    rows = {}
    for seed, found in batches.items():
        for batch in found:
            rows[seed] = rows.get(seed, {}) | dict(
                zip(batch["index"].tolist(), batch["images"][0], strict=True)
            )
    both = set(rows[0]) & set(rows[1])
    assert sum((rows[0][i] != rows[1][i]).any() for i in both) > len(both) / 2


def test_an_example_is_cropped_anew_in_every_epoch(folder):
    crops = {}
    for batch in fetched(make(open_folder(folder)).batches(0, 12)):
        for index, image in zip(batch["index"], batch["images"][0], strict=True):
            crops.setdefault(int(index), []).append(image.tobytes())
    assert sum(len(set(c)) for c in crops.values()) > 0.9 * 96


@pytest.mark.parametrize("part", [1, 3, 100])
def test_threads_and_their_portions_change_nothing(folder, monkeypatch, part):
    one = make(open_folder(folder), threads=1)
    batches, sweep = fetched(one.batches(0, 5)), fetched(one.sweep())
    monkeypatch.setattr(pipeline, "CHUNK", part)
    seven = make(open_folder(folder), threads=7)
    assert_equal(fetched(seven.batches(0, 5)), batches)
    assert_equal(fetched(seven.sweep()), sweep)


@pytest.mark.parametrize("count, fsdp", [(1, 1), (2, 1), (8, 4)])
def test_devices_change_nothing(folder, arrays, count, fsdp):
    for source, views in ((open_folder(folder), CROPS), (arrays, ("crop(6)",))):
        eight = fetched(make(source, views).batches(1, 4))
        mesh = mesh_of(count, fsdp)
        loaded = make(source, views, mesh=mesh)
        (batch,) = loaded.batches(1, 2)
        assert batch["index"].sharding == meshes.batched(mesh)
        assert len(batch["images"][0].addressable_shards) == count
        assert_equal(fetched(loaded.batches(1, 4)), eight)


def test_on_device_changes_nothing(arrays):
    views = ("crop(6) | flip", "resize(6)")
    there, here = make(on_device(arrays), views), make(arrays, views)
    assert there.resident and not here.resident
    key = jax.random.key(3)
    ours = jax.jit(lambda b, r: there.augment(b, r, key))
    plain = jax.jit(lambda b: here.augment(b, {}, key))
    for a, b in zip(there.batches(0, 3), here.batches(0, 3), strict=True):
        assert "images" not in a
        jax.tree.map(np.testing.assert_array_equal, ours(a, there.resident), plain(b))


def test_a_folder_on_device_is_decoded_once_and_stays_the_same(folder):
    text = "decode_center(8, resize_to=8) | flip"
    source = open_folder(folder)
    settled = pipeline.load_on_devices(
        source, parse(text, "eval"), mesh_of(8), threads=3
    )
    assert settled.images.shape == (SIZE, 8, 8, 3)
    here, there = make(source, (text,)), make(settled, (text,))
    key = jax.random.key(3)
    for a, b in zip(there.batches(0, 3), here.batches(0, 3), strict=True):
        a = there.augment(a, there.resident, key)
        jax.tree.map(np.testing.assert_array_equal, a, here.augment(b, {}, key))


# --- several views -------------------------------------------------------------------


def test_host_views_are_drawn_independently(folder):
    one = fetched(make(open_folder(folder), CROPS).batches(0, 4))
    two = fetched(make(open_folder(folder), CROPS * 2).batches(0, 4))
    for a, b in zip(one, two, strict=True):
        assert len(b["images"]) == 2
        np.testing.assert_array_equal(a["images"][0], b["images"][0])
        same = (b["images"][0] == b["images"][1]).all(axis=(1, 2, 3))
        assert same.mean() < 0.5


def test_device_views_are_drawn_independently(arrays):
    views = ("crop(6)", "crop(6)", "flip")
    loaded = make(arrays, views)
    (batch,) = loaded.batches(0, 1)
    found = jax.jit(lambda b, k: loaded.augment(b, {}, k))
    first = jax.device_get(found(batch, jax.random.key(0)))
    assert [v.shape for v in first["views"]] == [(8, 6, 6, 3)] * 2 + [(8, 8, 8, 3)]
    assert (first["views"][0] != first["views"][1]).any(axis=(1, 2, 3)).all()
    again = jax.device_get(found(batch, jax.random.key(1)))
    assert (first["views"][0] != again["views"][0]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(first["index"], batch["index"])
    np.testing.assert_array_equal(first["label"], batch["label"])


# --- sweeps --------------------------------------------------------------------------


def test_a_sweep_counts_every_example_once(source):
    loaded = make(source, views_of(source))
    batches = fetched(loaded.sweep())
    assert [len(b["valid"]) for b in batches] == [8, 8, 8]
    valid = np.concatenate([b["valid"] for b in batches])
    assert valid.tolist() == [True] * SIZE + [False] * 4
    assert np.array(indices(batches))[valid].tolist() == list(range(SIZE))
    assert_equal(fetched(loaded.sweep()), batches)


def test_a_sweep_of_fewer_than_a_batch(source):
    part = subset(source, np.array([3, 17, 4]))
    (batch,) = fetched(make(part, views_of(source)).sweep())
    assert batch["valid"].tolist() == [True] * 3 + [False] * 5
    if source.labels is not None:
        np.testing.assert_array_equal(batch["label"][:3], np.array([3, 17, 4]) % 3)


# --- broken files --------------------------------------------------------------------

BAD = (3, 4, 19)


@pytest.fixture
def damaged(folder, tmp_path):
    """The folder with two pictures cut short and a text, one of them the last."""
    for path in folder.iterdir():
        contents = path.read_bytes()
        number = int(path.stem)
        broken = b"not a picture" if number == 4 else contents[:60]
        (tmp_path / path.name).write_bytes(broken if number in BAD else contents)
    return tmp_path


def test_training_takes_the_next_picture_for_a_broken_one(damaged, caplog):
    loaded = make(open_folder(damaged), ("decode_center(8, resize_to=8)",))
    batches = fetched(loaded.batches(0, 6))  # three epochs: each is met twice or more
    wanted = np.concatenate([pipeline.permute_epoch(0, e, SIZE)[:16] for e in range(3)])
    instead = {3: 5, 4: 5, 19: 0}
    assert set(BAD) < set(wanted.tolist())
    assert indices(batches) == [instead.get(i, i) for i in wanted.tolist()]
    for batch in batches:
        red = batch["images"][0][:, :, :, 0]
        assert (red == 10 * batch["index"][:, None, None]).all()
    titles = {str(damaged / f"{i:02}.png") for i in BAD}
    assert loaded.unreadable == titles
    warned = [m for m in caplog.messages if m.startswith("cannot read")]
    assert len(warned) == 3
    assert all(any(t in m and m.endswith("left out") for m in warned) for t in titles)


def test_a_sweep_does_not_count_broken_files(damaged):
    loaded = make(open_folder(damaged), ("decode_center(8, resize_to=8)",))
    batches = fetched(loaded.sweep())
    valid = np.concatenate([b["valid"] for b in batches])
    assert np.array(indices(batches))[valid].tolist() == [
        i for i in range(SIZE) if i not in BAD
    ]
    assert valid.sum() == SIZE - 3 and len(loaded.unreadable) == 3


def test_a_file_that_went_missing_is_broken_too(folder, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((folder / f"{i:02}.png").read_bytes())
    source = open_folder(tmp_path)
    (tmp_path / "1.png").unlink()
    loaded = make(source, ("decode_center(8, resize_to=8)",))
    (batch,) = fetched(loaded.sweep())
    assert batch["valid"].tolist() == [True, False, True] + [False] * 5


def test_on_device_leaves_broken_files_out(damaged, caplog):
    source = open_folder(damaged)
    view = parse("decode_center(8, resize_to=8)", "eval")
    settled = pipeline.load_on_devices(source, view, mesh_of(8), threads=2)
    assert settled.size == SIZE - 3 and len(caplog.messages) == 3
    red = np.asarray(settled.images)[:, 0, 0, 0]
    assert red.tolist() == [10 * i for i in range(SIZE) if i not in BAD]


@pytest.fixture
def all_broken(tmp_path):
    for i in range(SIZE):
        (tmp_path / f"{i}.jpg").write_text("no picture")
    return open_folder(tmp_path)


def test_a_source_of_broken_files_only_is_refused(all_broken):
    says = "holds no picture that can be read"
    with pytest.raises(UsageError, match=says):
        next(make(all_broken).batches(0, 5))
    with pytest.raises(UsageError, match=says):
        next(make(all_broken).sweep())
    view = parse("decode", "eval")
    with pytest.raises(UsageError, match=says):
        pipeline.load_on_devices(all_broken, view, mesh_of(8), threads=2)


# --- sizes ---------------------------------------------------------------------------


def test_unequal_pictures_are_refused_in_one_sentence(folder):
    source = open_folder(folder)
    sizes = r"differ in size, such as \(9, 12, 3\) and \(11, 12, 3\); begin the views"
    with pytest.raises(UsageError, match=sizes + " with decode_crop or decode_center"):
        next(make(source, ("decode",)).batches(0, 1))
    with pytest.raises(UsageError, match=sizes + ".*on_device=False") as caught:
        pipeline.load_on_devices(source, parse("decode", "eval"), mesh_of(8), threads=2)
    assert "\n" not in str(caught.value)


# --- the whole section ---------------------------------------------------------------

GEOMETRY = Geometry(image_size=(6, 6), channels=3, patch=2, grid=(3, 3), any_size=False)


def sets(folder, **changes):
    fields = dict(
        source=f"folder:{folder}",
        directory="",
        split="train",
        eval_split="test",
        views=CROPS,
        eval_view="decode_center(6, resize_to=6)",
        eval_batch=8,
        on_device=False,
        threads=2,
        prefetch=2,
    )
    context = dict(batch=changes.pop("batch", BATCH), seed=0, mesh=mesh_of(8))
    return data.make(fields | changes, **context)


def test_example_has_the_shapes_of_a_batch(folder):
    example = sets(folder, views=CROPS * 2).example(GEOMETRY)
    shapes = [(v.shape, v.dtype) for v in example["views"]]
    assert shapes == [((1, 6, 6, 3), np.float32)] * 2


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"views": ("decode_crop(8)",)}, r"data\.views\[0\] makes .* 8 x 8 x 3 from"),
        ({"eval_view": "decode | resize(8)"}, r"data\.eval_view makes images of 8 x 8"),
        ({"views": ("flip",)}, r"data\.views\[0\]='flip' must begin with decode"),
        (
            {"views": (CROPS[0], "decode_crop(6, channels=1) | normalize")},
            r"data\.views\[1\]=.*normalize has 3 means for 1 channels",
        ),
    ],
)
def test_views_that_do_not_fit_the_network(folder, changes, says):
    with pytest.raises(UsageError, match=says):
        sets(folder, **changes).example(GEOMETRY)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"batch": 24}, "batch=24 is more than the 20 examples .* at most 20"),
        (
            {"on_device": True},
            r"on_device=True .* begin with the same operation and without random",
        ),
        ({"views": ("flop",)}, r"data\.views\[0\]: no operation 'flop'"),
        ({"eval_view": "flop"}, r"data\.eval_view: no operation 'flop'"),
        ({"thread": 2}, r"data\.thread is not a field; .*'threads'"),
    ],
)
def test_what_is_wrong_is_said_before_any_picture_is_read(folder, changes, says):
    with pytest.raises(UsageError, match=says):
        sets(folder, **changes)


def test_on_device_counts_the_pictures_that_can_be_read(damaged):
    view = "decode_center(6, resize_to=6)"
    few = sets(damaged, views=(view,), on_device=True, batch=16)
    assert few.train.source.size == 17 and few.train.steps_per_epoch == 1
    many = sets(damaged, views=(view,), on_device=True, batch=20)
    with pytest.raises(UsageError, match="batch=20 is more than the 17 examples"):
        many.train  # noqa: B018


def test_classes_are_those_of_the_folder_even_if_some_cannot_be_read(tmp_path):
    for i, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for n in range(4):
            Image.new("RGB", (6, 6), (i, n, 0)).save(tmp_path / name / f"{n}.png")
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(b"")
    opened = sets(tmp_path, views=("decode",), eval_view="decode", on_device=True)
    assert opened.classes == opened.train.source.classes == 3
    assert opened.train.source.labels.tolist() == [0] * 4 + [1] * 4
    assert opened.test(0) is None


def test_a_bank_is_spread_evenly(folder, caplog):
    with caplog.at_level(logging.WARNING):
        (batch,) = fetched(sets(folder).bank(5).sweep())
    assert batch["valid"].sum() == 5
    red = batch["images"][0][:5, 0, 0, 0]
    assert red.tolist() == [0, 40, 80, 120, 160]
