"""Checkpoints: bit-equal, laid out anew, complete or not there at all."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.errors import UsageError
from mixjax.run.checkpoints import FOLDER, Checkpoints
from mixjax.sharding import meshes
from mixjax.state import TrainState
from mixjax.training import warm_start

RULES = (("kernel$", "split"),)
NOTES = {"window": [[3, {"loss": 0.1}]], "metrics_bytes": 12, "evaluated": ["knn"]}


def make_state(seed=0):
    """A state with leaves of three types and parts without any."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {
            "kernel": jax.random.normal(keys[0], (8, 12)),
            "bias": jax.random.normal(keys[1], (12,), jnp.bfloat16),
        },
        "decoder": {"kernel": jax.random.normal(keys[2], (12, 8))},
    }
    count = jnp.int32(7 + seed)
    moments = {"mu": jax.tree.map(lambda p: p * 1e-30, params), "count": count}
    memory = {"queue": {}, "pointer": jnp.arange(3) + seed}
    return TrainState(
        step=count,
        params=params,
        opt_state=(moments, ()),
        stats={},
        teacher={},
        memory=memory,
    )


def laid(state, fsdp):
    """(state on the devices, its layout)."""
    layout = meshes.lay_out(
        meshes.make(fsdp=fsdp), jax.eval_shape(lambda: state), RULES
    )
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, layout)), layout


def check_same(found, wanted):
    """Equal in structure, type and every bit."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)

    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(
            *(np.asarray(x).reshape(-1).view(np.uint8) for x in (a, b))
        )

    jax.tree.map(same, found, wanted)


@pytest.fixture
def opened():
    """Opens checkpoints of a workdir, and closes them in the end."""
    found = []

    def make(workdir, **changes):
        fields = {"every": 2, "last": 9, "keep": 9, "keep_every": 0} | changes
        found.append(Checkpoints(workdir, **fields))
        return found[-1]

    yield make
    for saved in found:
        saved.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run, whose checkpoints 2 and 4 hold states 0 and 1."""
    path = tmp_path_factory.mktemp("run")
    saved = Checkpoints(path, every=2, last=4, keep=9, keep_every=0)
    for step, seed in ((2, 0), (4, 1)):
        saved.save(step, laid(make_state(seed), 1)[0], NOTES)
    saved.close()
    return path


def folders(workdir):
    return sorted(p.name for p in (workdir / FOLDER).iterdir())


def test_a_fresh_workdir_has_none(opened, tmp_path):
    assert opened(tmp_path).newest() is None


def test_due(opened, tmp_path):
    saved = opened(tmp_path)
    assert [step for step in range(10) if saved.due(step)] == [2, 4, 6, 8, 9]


def test_what_is_restored_is_what_was_saved(opened, workdir):
    saved = opened(workdir)
    assert saved.newest() == 4
    for step, seed in ((2, 0), (4, 1)):
        state, layout = laid(make_state(seed), 1)
        found, notes = saved.restore(step, layout)
        check_same(found, state)
        assert notes == NOTES


def test_saving_may_copy_to_the_host_where_that_is_forbidden(
    opened, tmp_path, monkeypatch
):
    """On a CPU nothing is copied and so nothing refused; hence the look at the rule."""
    levels, array, state = [], type(jnp.zeros(())), make_state()
    copy = array.copy_to_host_async

    def watched(self):
        levels.append(jax.config.jax_transfer_guard_device_to_host)
        return copy(self)

    monkeypatch.setattr(array, "copy_to_host_async", watched)
    with jax.transfer_guard("disallow"):
        opened(tmp_path).save(1, state, {})
    assert levels and set(levels) == {"allow"}


def test_restore_lays_out_anew(opened, workdir, tmp_path):
    """From a copy on every device to shared copies, and back."""
    whole, replicated = laid(make_state(0), 1)
    _, shared = laid(make_state(0), 4)
    cut, _ = opened(workdir).restore(2, shared)
    check_same(cut, whole)
    kernel = cut.params["encoder"]["kernel"]
    assert kernel.sharding == shared.params["encoder"]["kernel"].sharding
    assert {p.data.shape for p in kernel.addressable_shards} == {(8, 3)}
    again = opened(tmp_path)
    again.save(2, cut, NOTES)
    back, _ = again.restore(again.newest(), replicated)
    check_same(back, whole)
    for leaf in jax.tree.leaves(back):
        assert leaf.is_fully_replicated and len(leaf.addressable_shards) == 8


def test_a_state_may_be_overwritten_once_save_returns(opened, tmp_path):
    state, layout = laid(make_state(0), 1)
    saved = opened(tmp_path)
    saved.save(2, state, NOTES)
    jax.tree.map(lambda x: x.delete(), state)
    check_same(saved.restore(saved.newest(), layout)[0], make_state(0))


def test_only_the_newest_are_kept_and_the_multiples(opened, tmp_path):
    state, _ = laid({"kernel": jnp.ones(8)}, 1)
    saved = opened(tmp_path, keep=2, keep_every=4)
    for step in (2, 4, 6, 8, 9):
        saved.save(step, state, {})
    saved.close()
    assert folders(tmp_path) == ["4", "8", "9"]
    plain = opened(tmp_path / "plain", keep=2)
    for step in (2, 4, 6):
        plain.save(step, state, {})
    plain.close()
    assert folders(tmp_path / "plain") == ["4", "6"]


def test_saving_a_step_again_leaves_the_first(opened, tmp_path):
    saved = opened(tmp_path)
    first, layout = laid(make_state(0), 1)
    saved.save(2, first, {"number": 1})
    saved.save(2, laid(make_state(1), 1)[0], {"number": 2})
    found, notes = saved.restore(2, layout)
    check_same(found, first)
    assert notes == {"number": 1}


def test_close_waits_for_the_last_save(opened, tmp_path):
    state, layout = laid({"kernel": jnp.arange(2.0**21)}, 1)
    saved = opened(tmp_path)
    saved.save(2, state, NOTES)
    saved.close()
    assert folders(tmp_path) == ["2"]
    again = opened(tmp_path)
    check_same(again.restore(again.newest(), layout)[0], state)


def copy_of(workdir, tmp_path):
    shutil.copytree(workdir / FOLDER, tmp_path / FOLDER)
    return tmp_path / FOLDER


def test_newest_waits_for_the_save_under_way(opened, tmp_path):
    saved = opened(tmp_path)
    saved.save(2, laid({"kernel": jnp.arange(2.0**21)}, 1)[0], NOTES)
    assert saved.newest() == 2


def test_what_an_interrupted_save_left_is_ignored(opened, workdir, tmp_path):
    folder = copy_of(workdir, tmp_path)
    shutil.copytree(folder / "4", folder / "6.orbax-checkpoint-tmp-0")
    saved = opened(tmp_path)
    assert saved.newest() == 4
    state, layout = laid(make_state(1), 1)
    check_same(saved.restore(4, layout)[0], state)
    saved.save(6, state, NOTES)
    saved.close()
    assert folders(tmp_path) == ["2", "4", "6"]
    assert opened(tmp_path).newest() == 6


def test_a_folder_without_its_commit_mark_is_ignored(opened, workdir, tmp_path):
    folder = copy_of(workdir, tmp_path)
    (folder / "4" / "commit_success.txt").unlink()
    assert opened(tmp_path).newest() == 2


def test_an_incomplete_step_is_written_again(opened, workdir, tmp_path):
    folder = copy_of(workdir, tmp_path)
    (folder / "4" / "commit_success.txt").unlink()
    saved = opened(tmp_path)
    state, layout = laid(make_state(0), 1)
    found, _ = saved.resume(layout)
    check_same(found, state)
    saved.save(4, state, {"window": []})
    assert saved.newest() == 4


def cut(file, chance) -> None:
    """Leaves some of a file's bytes, not all."""
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def names_of(step) -> list:
    """The files of a checkpoint."""
    return [p.relative_to(step) for p in sorted(step.rglob("*")) if p.is_file()]


def check_falls_back(opened, place, said) -> None:
    """Checkpoint 4 is set aside with one warning, 2 is taken, 4 can be saved again."""
    state, before, saved = make_state(0), len(said), opened(place)
    found, notes = saved.resume(laid(state, 1)[1])
    check_same(found, state)
    assert notes == NOTES
    warned, went_on = said[before:]
    assert "cannot be read, moved to" in warned and "checkpoints 4 (" in warned
    assert went_on == "continuing from the checkpoint of step 2"
    assert (place / "checkpoints.damaged" / "4").is_dir()
    saved.save(4, make_state(1), NOTES)
    assert saved.newest() == 4
    saved.close()


def test_a_cut_checkpoint_costs_one_interval(opened, workdir, tmp_path, said):
    """Whichever file is cut, and wherever."""
    chance, names = random.Random(0), names_of(workdir / FOLDER / "4")
    assert len(names) > 10
    for number, name in enumerate(names):
        shutil.copytree(workdir / FOLDER, tmp_path / str(number) / FOLDER)
        cut(tmp_path / str(number) / FOLDER / "4" / name, chance)
        check_falls_back(opened, tmp_path / str(number), said)


# Orbax leaves its event loop behind when it cannot read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["state/d/*", "notes/metadata", "state/_METADATA"])
def test_a_cut_checkpoint_without_sizes(opened, workdir, tmp_path, said, name):
    """Killed before they were written: what cannot be read is found by reading."""
    folder = copy_of(workdir, tmp_path) / "4"
    (folder / "sizes.json").unlink()
    (file,) = folder.glob(name)
    cut(file, random.Random(0))
    check_falls_back(opened, tmp_path, said)


def test_without_any_that_can_be_read_nothing_is_touched(opened, workdir, tmp_path):
    folder, chance = copy_of(workdir, tmp_path), random.Random(1)
    for step in ("2", "4"):
        cut(folder / step / "state" / "_METADATA", chance)
    names = folders(tmp_path)
    with pytest.raises(UsageError, match=r"none of the checkpoints in .* such as 4 \("):
        opened(tmp_path).resume(laid(make_state(0), 1)[1])
    assert folders(tmp_path) == names


def test_what_does_not_fit_is_no_damage(opened, workdir, tmp_path):
    copy_of(workdir, tmp_path)
    other = make_state(0).replace(memory={"queue": jnp.zeros(3)})
    with pytest.raises(UsageError, match="checkpoint 4: .* tensors do not fit"):
        opened(tmp_path).resume(laid(other, 1)[1])
    assert folders(tmp_path) == ["2", "4"]


def test_a_type_that_changed_is_refused(opened, workdir):
    state = make_state(0)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params["decoder"])
    wanted = state.replace(params={**state.params, "decoder": cast})
    with pytest.raises(UsageError, match=r"float32 instead of .* bfloat16"):
        opened(workdir).restore(2, laid(wanted, 1)[1])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"decoder": {"kernel": jnp.ones((12, 9))}},
            r"2 tensors .*params/decoder/kernel \(12, 8\) float32 instead of \(12, 9\)",
        ),
        (
            {"head": {"bias": jnp.ones(3)}},
            r"2 tensors .*params/head/bias missing instead of \(3,\)",
        ),
        ({"decoder": {}}, r"2 tensors .*params/decoder/kernel \(12, 8\) .* too many"),
    ],
)
def test_restore_names_the_tensors_that_do_not_fit(opened, workdir, change, message):
    state = make_state(0)
    params = {**state.params, **change}
    moments = {**state.opt_state[0], "mu": params}
    state = state.replace(params=params, opt_state=(moments, ()))
    with pytest.raises(UsageError, match=rf"checkpoint 2: {message}"):
        opened(workdir).restore(2, laid(state, 1)[1])


def begin(fsdp=1, **parts):
    """Parameters of a new run, and their layout."""
    return laid(parts, fsdp)


def ones(tree):
    return jax.tree.map(jnp.ones_like, tree)


def start(workdir, layout):
    """A warm start without batch statistics, from a network that is the same."""
    model, layout = {"encoder": {}}, {"params": layout, "stats": {}}
    trees, step = warm_start.from_run(str(workdir), layout, model, model)
    assert step == 4
    return trees


@pytest.mark.parametrize("fsdp", [1, 4])
def test_warm_start_takes_whole_parts_of_the_newest(workdir, said, fsdp):
    old = make_state(1).params
    params, layout = begin(fsdp, encoder=ones(old["encoder"]), head={"b": jnp.ones(5)})
    found = params | start(workdir, layout)["params"]
    check_same(found, {"encoder": old["encoder"], "head": {"b": jnp.ones(5)}})
    kernel = found["encoder"]["kernel"]
    assert kernel.sharding == layout["encoder"]["kernel"].sharding
    (line,) = said
    assert "step 4: ['encoder'] (108 weights)" in line


def test_warm_start_names_what_is_wrong(opened, workdir, tmp_path):
    old = make_state(1).params
    params, layout = begin(encoder=ones(old["encoder"]))
    with pytest.raises(UsageError, match=r"init_from=.*/checkpoints does not exist"):
        start(tmp_path, layout)
    opened(tmp_path)
    with pytest.raises(UsageError, match="holds no complete checkpoint"):
        start(tmp_path, layout)
    other = begin(head={"b": jnp.ones(5)})
    with pytest.raises(UsageError, match=r"no part in common .*'encoder'"):
        start(workdir, other[1])
    wide = {"kernel": jnp.ones((8, 16)), "bias": old["encoder"]["bias"]}
    fits = r"encoder: 1 tensors .*kernel \(8, 12\) \w+ instead of \(8, 16\)"
    with pytest.raises(UsageError, match=fits):
        start(workdir, begin(encoder=wide, decoder=old["decoder"])[1])
    with pytest.raises(UsageError, match=r"encoder: 1 tensors .*kernel .* too many"):
        start(workdir, begin(encoder={"bias": old["encoder"]["bias"]})[1])
