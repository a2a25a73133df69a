"""What the doctor says of a recipe: all that is wrong at once, and nothing else.

ALL_RECIPES=1 in the environment examines every recipe instead of a few.
"""

import json
import os
import re
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mixjax.config import recipes
from mixjax.data import stand_in
from mixjax.doctor import diagnosis, pictures, space
from mixjax.doctor.findings import Findings
from mixjax.run.workdir import as_json
from mixjax.state import Geometry
from tests.support import tiny


def examine(config, workdir, most=None) -> Findings:
    """What the doctor finds, with the devices of this process."""
    found = Findings()
    diagnosis.diagnose(found, config, str(workdir), most)
    return found


def text(found: Findings) -> str:
    return "\n".join(found.lines())


def folder(path, count=20, broken=()):
    """Grey pictures; the ones numbered in `broken` are cut in the middle."""
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        file = path / f"{i:02d}.png"
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:100])
    return path


def test_nothing_is_wrong(tmp_path):
    found = examine(tiny.config(), tmp_path / "run")
    assert found.problems == []
    said = text(found)
    assert said.endswith("no problem found")
    for part in (
        "8 x cpu as data 8 x fsdp 1",
        "training: digits/train, 1437 examples, 10 classes",
        "held out: digits/test, 360 examples",
        "16 x 16 x 1 in patches of 4: 4 x 4 tokens",
        "16 examples, 2 per device",
        "base 0.002 x 1 (effective batch 16) = 0.002; cosine",
        "12 steps, 192 examples",
        "encoder 0.01 M",
        f"{tmp_path}/run, a new run",
    ):
        assert part in said, part
    assert not (tmp_path / "run").exists()


# --- the data ------------------------------------------------------------------------


def test_imagenet_without_imagenet(tmp_path):
    """One sentence on the data; all else is computed for blank pictures."""
    config = recipes.load(f"{tiny.ROOT}/configs/mae_vits.py")
    config.data.directory = str(tmp_path)
    found = examine(config, tmp_path / "run")
    (problem,) = found.problems
    assert problem.startswith("data.source=tfds:imagenet2012 is not prepared in")
    assert "python -m mixjax.prepare imagenet2012" in problem
    said = text(found)
    for part in (
        "blank pictures replace it below",
        "224 x 224 x 3 in patches of 16: 14 x 14 tokens",
        "x batch/256 (effective batch 4096) = 0.0024",
        "800 epochs; the steps are not known",
        "encoder 21.59 M",
        "a step adds activations: --for=CHIPS",
    ):
        assert part in said, part


def test_broken_files_are_named(tmp_path):
    place = folder(tmp_path / "own", broken=(3, 17))
    config = tiny.config(**tiny.of_files(place))
    found = examine(config, tmp_path / "run")
    (problem,) = found.problems
    assert "2 of 20 files of own/train" in problem
    assert "03.png (" in problem and "17.png (" in problem
    assert "own/train: 20 of 20 decoded" in text(found)
    # An evenly spread part of them: 0, 4, 8, 12, 16.
    assert examine(config, tmp_path / "run", 5).problems == []
    config = tiny.config(**tiny.of_files(folder(tmp_path / "all", 16, range(16))))
    found = examine(config, tmp_path / "run")
    assert "16 of 16 files" in found.problems[0] and "13 more" in found.problems[0]
    assert "holds no picture that can be read" in found.problems[1]


def test_a_hurried_look_ends_in_time(monkeypatch, tmp_path):
    config = tiny.config(**tiny.of_files(folder(tmp_path / "own")))
    source = pictures.open_splits(Findings(), config.data).train
    monkeypatch.setattr(pictures, "SECONDS", 0.0)
    broken, seen = pictures.look(source, 20, hurry=True, threads=2)
    assert not broken and seen < 20
    assert pictures.look(source, 20, hurry=False, threads=2) == ([], 20)


def test_labels_and_splits(tmp_path):
    """What has no labels has no classifier; a held-out part of its own may be wrong."""
    config = tiny.supervised("linear", model__classifier__classes=7)
    found = examine(config, tmp_path / "run")
    assert [p.partition(",")[0] for p in found.problems] == [
        "model.classifier.classes=7"
    ]
    config = tiny.config(data__eval_split="tset | part(2)", batch=1440)
    found = examine(config, tmp_path / "run")
    assert len(found.problems) == 2
    assert "data.eval_split='tset | part(2)': part: missing" in found.problems[0]
    assert "batch=1440 is more than the 1437 examples" in found.problems[1]
    assert "encoder 0.01 M" in text(found)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("source", ["tfds:none", "npz:none.npz"])
def test_a_stand_in_is_as_the_data_would_be(channels, source):
    config = tiny.supervised("linear", data__source=source)
    config.method.loss = "sigmoid"
    geometry = Geometry((16, 24), channels, 8, (2, 3), False)
    made = stand_in.source(config, geometry)
    picture, label = made.read(5)
    assert isinstance(picture, bytes) == source.startswith("tfds")
    if not isinstance(picture, bytes):
        assert picture.shape == (16, 24, channels)
    assert (made.classes, made.several, label.shape) == (10, True, (10,))
    view = pictures.fitting(config.data, geometry, made)["eval_view"]
    resized = not isinstance(picture, bytes) and channels == 4
    assert view.startswith("resize" if resized else "decode_center")


# --- several at once -----------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = tiny.config(
        batch=12,
        mesh__fsdp=3,
        data__source=f"folder:{tmp_path}/gone",
        data__on_device=False,
        data__eval_view="decode_center(16, 18, channels=1) | normalise",
        model__encoder__patch=4,
        optim__name="adam2",
        schedule__rule="batch/128",
        evals__knn__k=0,
    )
    good = "decode_center(16, 18, channels=1) | normalize((.3,), (.4,))"
    bad = "decode_crop(20, channels=1)", "decode_crop(16, channels=3)"
    config.data.views = (bad[0], good, bad[1])
    found = examine(config, tmp_path / "file")
    for part in (
        "mesh.fsdp=3 does not divide the 8 devices; 1, 2, 4, 8 would",
        "batch=12 is not a multiple of 8 devices; take 8 or 16",
        "there is no such folder",
        "data.views[0] makes images of 20 x 20 x 1 .* expects 16 x 16 x 1",
        "data.views[2] makes images of 16 x 16 x 3",
        "data.eval_view: no operation 'normalise'; did you mean 'normalize'",
        "optim.name 'adam2' does not exist",
        "schedule.rule 'batch/128' does not exist; did you mean",
        "--workdir=.*/file cannot be written",
    ):
        pattern = part.replace("[", r"\[").replace("]", r"\]").replace("(", r"\(")
        (index,) = [i for i, p in enumerate(found.problems) if re.search(pattern, p)]
        found.problems.pop(index)
    assert found.problems == []


def test_without_a_network_the_rest_is_still_looked_at(tmp_path):
    config = tiny.config(model__encoder__heads=3, batch=12, data__views="flipp")
    problems = examine(config, tmp_path / "run").problems
    starts = ["model.encoder.width=16", "data.views[0]: no operation", "batch=12"]
    assert [p[: len(s)] for p, s in zip(problems, starts, strict=True)] == starts


def test_groups_and_accumulation(tmp_path):
    config = tiny.masked("mixedae", batch=40)
    (problem,) = examine(config, tmp_path / "run").problems
    assert "cuts groups of 4 examples" in problem and "take 32 or 64" in problem
    config = tiny.siamese("simclr", accumulate=2, batch=32)
    (problem,) = examine(config, tmp_path / "run").problems
    assert problem.startswith("accumulate=2: this method compares")


def test_each_evaluation_is_tried(tmp_path):
    config = tiny.config(evals__knn__k=0)
    config.evals.pictures.name = "picture"
    with config.unlocked():
        config.evals.late = dict(name="knn", every_epochs=1.0, at_start=False)
    problems = examine(config, tmp_path / "run").problems
    assert len(problems) == 3
    assert any("evals.knn: k=0 must be at least 1" in p for p in problems)
    assert any("evals.pictures.name 'picture' does not exist" in p for p in problems)
    assert any("evals.late.vote" in p and "missing" in p for p in problems)


def test_an_unforeseen_error_is_listed_too(tmp_path, monkeypatch):
    def fails(*args, **how):
        raise TypeError("shapes differ\nand more")

    monkeypatch.setattr("mixjax.doctor.space.trace_loss", fails)
    found = examine(tiny.config(), tmp_path / "run")
    assert found.problems == ["the run would end in an error: TypeError: shapes differ"]
    assert "optimizer" in text(found)


def test_init_from_is_read(tmp_path):
    config = tiny.config(init_from=f"{tmp_path}/gone")
    (problem,) = examine(config, tmp_path / "run").problems
    assert problem.startswith(f"init_from={tmp_path}/gone: neither a file nor a run")


# --- room ----------------------------------------------------------------------------

Disk = namedtuple("Disk", "total used free")


def sizes(found: Findings, title: str) -> str:
    return " ".join(body for name, body in found.facts if name == title)


def test_too_little_space(tmp_path, monkeypatch):
    config = tiny.config(checkpoint__keep=4)
    room = lambda free: lambda path: Disk(0, 0, free)
    monkeypatch.setattr("shutil.disk_usage", room(10**9))
    found = examine(config, tmp_path / "run")
    assert found.problems == [] and "at most 5 at a time" in sizes(found, "checkpoint")
    each = re.match(r"([\d.]+) KiB each", sizes(found, "checkpoint"))
    size = float(each[1]) * 1024
    monkeypatch.setattr("shutil.disk_usage", room(int(3.5 * size)))
    (problem,) = examine(config, tmp_path / "run").problems
    assert f"5 checkpoints of {each[1]} KiB need" in problem
    assert f"disk of {tmp_path}" in problem and "or checkpoint.keep=2" in problem
    # What is kept for good comes on top: of 12 steps at 25 epochs each, four.
    monkeypatch.setattr("shutil.disk_usage", room(int(8.9 * size)))
    config = tiny.config(checkpoint__keep=4, checkpoint__keep_every_epochs=25.0)
    (problem,) = examine(config, tmp_path / "run").problems
    assert "9 checkpoints" in problem


def test_tracing_that_takes_too_long_is_left_out(monkeypatch):
    """It costs no more than its time, and is no problem."""
    monkeypatch.setattr("mixjax.doctor.space.TRACING", 0.2)
    monkeypatch.setattr("jax.eval_shape", lambda *_: time.sleep(60))
    config, run = SimpleNamespace(batch=8, accumulate=1), tiny_run()
    begin = time.monotonic()
    space.trace_loss(config, run)
    assert time.monotonic() - begin < 50


def tiny_run():
    layout = SimpleNamespace(params={})
    method = SimpleNamespace(loss=None)
    return SimpleNamespace(example={}, layout=layout, method=method)


def test_fsdp_shares_the_state(tmp_path):
    def optimizer(fsdp):
        found = examine(tiny.config(mesh__fsdp=fsdp), tmp_path / "run")
        assert found.problems == []
        return float(re.search(r"optimizer ([\d.]+) KiB", text(found))[1])

    assert optimizer(8) < optimizer(1) / 4


# --- the workdir ---------------------------------------------------------------------


def run_folder(path, config, **files):
    """The folder of a run that has saved step 3."""
    (path / "checkpoints" / "3").mkdir(parents=True)
    (path / "checkpoints" / "3" / "commit_success.txt").write_text("")
    (path / "config.json").write_text(json.dumps(as_json(config)))
    for name, content in files.items():
        (path / name).write_text(content)


def test_a_run_of_another_config(tmp_path):
    run_folder(tmp_path, tiny.config())
    assert "continues at step 3" in text(examine(tiny.config(), tmp_path))
    (problem,) = examine(tiny.config(batch=32), tmp_path).problems
    assert "belongs to a run with another config: batch (16 -> 32)" in problem


def test_a_complete_run(tmp_path):
    run_folder(tmp_path, tiny.config(), DONE="12\n")
    (problem,) = examine(tiny.config(), tmp_path).problems
    assert "holds a complete run" in problem
    assert not (tmp_path / "new").exists()


def test_no_folder_is_left_behind(tmp_path):
    examine(tiny.config(), tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes").write_text("mine")
    examine(tiny.config(), tmp_path / "a")
    assert (tmp_path / "a" / "notes").exists()


# --- all recipes ---------------------------------------------------------------------

RECIPES = sorted(
    p.stem
    for p in (tiny.ROOT / "configs").glob("*.py")
    if p.stem not in recipes.NO_RECIPES
)
SOME = RECIPES if os.environ.get("ALL_RECIPES") else RECIPES[3::15]


@pytest.mark.parametrize("name", SOME)
def test_a_recipe_lacks_nothing_but_its_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = recipes.load(f"{tiny.ROOT}/configs/{name}.py")
    config.batch *= 2  # of one recipe 8 devices would cut the groups
    found = examine(config, tmp_path / "run")
    assert all(p.startswith("data.source=") for p in found.problems), found.problems
    titles = {title for title, _ in found.facts}
    assert {
        "pictures",
        "rate",
        "length",
        "parameters",
        "device",
        "checkpoint",
    } <= titles
