"""The command line: what is wrong is said in one sentence, before any long work."""

import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mixjax import errors, main
from mixjax.config import recipes
from mixjax.runtime import signals
from tests.support import tiny


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """A run takes over signals and sets flags for the compiler; not here."""
    monkeypatch.setattr(signals.Interrupt, "install", lambda self: self)
    monkeypatch.setattr("mixjax.runtime.cpu_settings.tune", lambda: None)


def pictures(folder, count):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (20, 20), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def refused(capsys, monkeypatch, argv) -> str:
    """The sentence with which the command is refused, before anything is compiled."""

    def compiles(*args, **kwargs):
        raise AssertionError("it began to compile")

    monkeypatch.setattr("mixjax.training.loop.begin", compiles)
    assert main.run(argv) == errors.USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


WRONG = {
    "config.batchh is not a field of the recipe; did you mean 'batch'": {"batchh": 3},
    "config.data.sorce is not a field .* did you mean 'source'": {"data__sorce": "x"},
    "config.batch.x is not a field of the recipe; config.batch has no parts": {
        "batch__x": 1
    },
    "config.steps=ten: invalid literal for int": {"steps": "ten"},
    r"batch=12 is not a multiple of 8 devices; take 8 or 16\.": {"batch": 12},
    r"batch=16 is not a multiple of 8 devices x accumulate=4": {"accumulate": 4},
    r"batch=1440 is more than the 1437 examples of digits/train": {"batch": 1440},
    r"image_size=\(18, 16\): 18 is not a multiple of model.encoder.patch=4; "
    "the nearest multiples are 16 or 20": {"model__encoder__image_size": (18, 16)},
    r"data.views\[0\] makes images of 8 x 8 x 1 .* expects 16 x 16 x 1": {
        "data__views": "normalize((.3,), (.4,))"
    },
    r"data.views\[0\]: no operation 'flipp'; did you mean 'flip'": {
        "data__views": "resize(16) | flipp"
    },
    "data.eval_view: resize has no argument 'filtr'; did you mean 'filter'": {
        "data__eval_view": "resize(16, filtr='bicubic')"
    },
    "data.source 'folders' does not exist; did you mean 'folder'": {
        "data__source": "folders:x"
    },
    "folder:nowhere: there is no such folder": {"data__source": "folder:nowhere"},
    "npz:nothing.npz: there is no such file": {"data__source": "npz:nothing.npz"},
    "data: digits has no split 'trane'; did you mean 'train'": {"data__split": "trane"},
    "method.name 'may' does not exist; did you mean 'mae'": {"method__name": "may"},
    "method.mask_ratio=1.5 keeps": {"method__mask_ratio": 1.5},
    "optim.name 'adam2' does not exist": {"optim__name": "adam2"},
    "optim: the rule 'heads' matches no parameter": {
        "optim__lr_rules": (("heads", 0),)
    },
    "evals.knn.name 'nn' does not exist": {"evals__knn__name": "nn"},
    "model.encoder.remat 'all' does not exist": {"model__encoder__remat": "all"},
    "mesh.fsdp=3 does not divide the 8 devices; 1, 2, 4, 8 would": {"mesh__fsdp": 3},
    "init_from=gone: .* does not exist": {"init_from": "gone"},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_fields(sentence, capsys, monkeypatch, tmp_path):
    argv = [*tiny.flags(**WRONG[sentence]), f"--workdir={tmp_path}/run"]
    if "init_from" in sentence:  # looked at when there is something to put it into
        assert main.run(argv) == errors.USAGE
        assert re.search(sentence, capsys.readouterr().err)
        return
    assert re.search(sentence, refused(capsys, monkeypatch, argv))


FLAGS = {
    "--config is missing; try --config=configs/quickstart.py": [],
    "'extra' is not a flag": ["--config=configs/quickstart.py", "extra"],
    "--workdirr is not a flag; did you mean 'workdir'": ["--workdirr=x"],
    "--workdir needs a value": ["--config=configs/quickstart.py", "--workdir"],
    "no such file; did you mean .*'configs/quickstart.py'": [
        "--config=configs/quickstrat.py"
    ],
    "variant 'epoch' is unknown; there is epochs": [
        "--config=configs/mae_vitb.py:epoch=3"
    ],
}


@pytest.mark.parametrize("sentence", FLAGS)
def test_wrong_flags(sentence, capsys, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    assert re.search(sentence, refused(capsys, monkeypatch, FLAGS[sentence]))


def test_a_recipe_with_a_mistake_names_its_line(tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "own.py"
    recipe.write_text("def get_config(arg):\n    return nothing\n")
    said = refused(capsys, monkeypatch, [f"--config={recipe}"])
    assert "own.py, line 2: NameError: name 'nothing' is not defined" in said


def test_an_empty_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    argv = tiny.flags(data__source=f"folder:{tmp_path}/empty", data__on_device=False)
    said = refused(capsys, monkeypatch, [*argv, f"--workdir={tmp_path}/run"])
    assert "holds no picture (" in said and ".jpg" in said


def test_files_need_a_view_that_decodes(tmp_path, capsys, monkeypatch):
    folder = pictures(tmp_path / "own", 20)
    argv = tiny.flags(data__source=f"folder:{folder}", data__on_device=False)
    said = refused(capsys, monkeypatch, [*argv, f"--workdir={tmp_path}/run"])
    assert "must begin with decode, decode_crop or decode_center" in said


@pytest.mark.parametrize("place", ["/proc/nothing", "file"])
def test_a_workdir_that_cannot_be_written(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    said = refused(capsys, monkeypatch, [*tiny.flags(), f"--workdir={place}"])
    assert f"--workdir={place} cannot be written" in said


def test_a_refused_start_binds_the_workdir_to_nothing(tmp_path, capsys, monkeypatch):
    where = f"--workdir={tmp_path}/run"
    refused(capsys, monkeypatch, [*tiny.flags(batch=12), where])
    monkeypatch.undo()
    tiny.run(tmp_path / "run", tiny.config(steps=1))
    assert (tmp_path / "run" / "DONE").exists()


def test_an_old_workdir_keeps_its_config(tmp_path, capsys, monkeypatch):
    tiny.run(tmp_path, tiny.config(), tiny.StopAt(4))
    where = f"--workdir={tmp_path}"
    changes = {"batch": 32, "schedule__base": 0.5, "log__every": 3}
    said = refused(capsys, monkeypatch, [*tiny.flags(**changes), where])
    assert "batch (16 -> 32), schedule.base (0.002 -> 0.5)" in said
    assert "log.every" not in said


def test_flags_take_all_usual_forms():
    argv = ["--config", str(tiny.ROOT / "configs" / "quickstart.py")]
    argv += ["--config.steps=1e3", "--config.schedule.base", "1", "-workdir=here"]
    argv += ["--config.model.encoder.image_size=(8,12)", "--config.data.views=flip"]
    config, given = recipes.read(argv, workdir=None)
    assert config.steps == 1000 and isinstance(config.steps, int)
    assert config.schedule.base == 1.0 and given["workdir"] == "here"
    assert config.model.encoder.image_size == (8, 12)
    assert config.data.views == ("flip",)


def test_help_needs_nothing():
    code = "import sys, runpy; sys.argv = ['main', '--help']\n"
    code += "try: runpy.run_module('mixjax.main', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("python -m mixjax.main --config=")
    assert done.stdout.splitlines()[-1] == "0 False"


def test_two_views_from_two_crops_of_a_flat_folder(tmp_path):
    """A folder of the user's own pictures, as it is, at the first try."""
    folder = pictures(tmp_path / "own", 20)
    (folder / "notes.txt").write_text("my pictures")
    settings = tiny.config(**tiny.of_files(folder, steps=2))
    run = tiny.run(tmp_path / "run", settings)
    assert (run / "figures" / "pictures_0000002.png").exists()
    assert "the data has no labels: no kNN" in (run / "train.log").read_text()


NEEDED = """jax flax optax orbax-checkpoint chex numpy pillow matplotlib tensorboard
ml_collections clu grain"""
BLOCK = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from mixjax.main import run
sys.exit(run(sys.argv[1:]))
"""


def needed_packages() -> set[str]:
    """NEEDED and what it requires, in turn."""
    found, rest = set(), NEEDED.split()
    while rest:
        name = re.sub(r"[-_.]+", "-", rest.pop()).lower()
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            plain = (r for r in requires if "extra ==" not in r)
            rest += [re.match(r"[\w.-]+", r).group() for r in plain]
    return found


def test_a_run_needs_few_packages(tmp_path):
    """Without TensorFlow, TFDS, simplejpeg or OpenCV, from files to pictures."""
    kept = needed_packages()
    blocked = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not kept & {re.sub(r"[-_.]+", "-", o).lower() for o in owners}
    }
    assert {"tensorflow_datasets", "simplejpeg", "cv2"} <= blocked
    folder = pictures(tmp_path / "own", 20)
    argv = tiny.flags(**tiny.of_files(folder, steps=2))
    code = BLOCK.format(blocked=blocked)
    done = subprocess.run(
        [sys.executable, "-c", code, *argv, f"--workdir={tmp_path}/run"],
        cwd=tiny.ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == errors.DONE, done.stdout + done.stderr
    assert done.stderr == ""
