"""The doctor as a command, the devices it counts for, and the versions it accepts."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mixjax import errors
from mixjax.doctor import __main__ as command
from mixjax.doctor import devices, pictures, versions
from mixjax.errors import UsageError
from tests.support import tiny

# --- versions ------------------------------------------------------------------------


def packages(**given):
    """{name: package}; a package is its version, or (version, [what it needs])."""
    found = {}
    for name, what in given.items():
        version, needs = (what, []) if isinstance(what, str) else what
        package = SimpleNamespace(version=version, requires=needs)
        found[name.replace("_", "-")] = package
    return found


def wrong(monkeypatch, tmp_path, asked: str, **given) -> list[str]:
    monkeypatch.setattr(versions, "installed", lambda: packages(**given))
    file = tmp_path / "requirements.txt"
    file.write_text(f"# ours\n-r other.txt\n{asked}\n")
    return versions.check(file)[1]


def test_what_is_here_fits():
    line, found = versions.check()
    assert found == [] and " jax " in line and " jaxlib " in line


def test_versions_out_of_bounds(monkeypatch, tmp_path):
    here = dict(jax="0.9.1", jaxlib="0.9.1")
    (said,) = wrong(monkeypatch, tmp_path, "jax>=0.10,<0.12  # why", **here)
    assert said == (
        "requirements.txt needs jax<0.12,>=0.10, but 0.9.1 is installed; "
        'run pip install "jax<0.12,>=0.10".'
    )
    assert wrong(monkeypatch, tmp_path, "jax>=0.9", **here) == []
    (said,) = wrong(monkeypatch, tmp_path, "clu>=0.0.12", **here)
    assert said.startswith("requirements.txt needs clu, which is not installed")


def test_what_packages_need_in_turn(monkeypatch, tmp_path):
    """tensorboard without setuptools; what only an extra needs does not count."""
    needs = ["setuptools>=41", "numpy>=2", 'torch>=2; extra == "test"']
    here = dict(tensorboard=("2.21.0", needs), numpy="1.26.4")
    found = wrong(monkeypatch, tmp_path, "tensorboard>=2", **here)
    assert len(found) == 2
    assert "tensorboard 2.21.0 needs setuptools, which is not installed" in found[0]
    assert "tensorboard 2.21.0 needs numpy>=2, but 1.26.4 is installed" in found[1]
    found = wrong(monkeypatch, tmp_path, "tensorboard[test]>=2", **here)
    assert any("torch, which is not installed" in said for said in found)


def test_pairs_that_must_be_alike(monkeypatch, tmp_path):
    (said,) = wrong(monkeypatch, tmp_path, "jax", jax="0.10.2", jaxlib="0.10.1")
    assert said.startswith("jax is 0.10.2, but jaxlib is 0.10.1; they must be the same")
    here = dict(jax="0.10.2", jaxlib="0.10.2", jax_cuda12_plugin="0.10.1")
    (said,) = wrong(monkeypatch, tmp_path, "jax", **here)
    assert said.startswith("jax-cuda12-plugin is 0.10.1, but jaxlib is 0.10.2")
    assert 'pip install "jax[cuda12]==0.10.2"' in said
    here |= dict(jax_cuda12_plugin="0.10.2", jax_cuda13_pjrt="0.10.2")
    (said,) = wrong(monkeypatch, tmp_path, "jax", **here)
    assert said.startswith("jax has plugins for cuda12 and cuda13")


# --- the command ---------------------------------------------------------------------


def test_devices(monkeypatch):
    assert devices.count("64") == 64
    for wrong in ("0", "x", "5000", "-1"):
        with pytest.raises(UsageError, match=rf"--devices={wrong} is not a number"):
            devices.count(wrong)
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.count(None) == 8
    asked = "print('devices:', 4)"
    monkeypatch.setattr(versions, "plugins", lambda versions: ["libtpu"])
    monkeypatch.setattr(devices, "ASK", asked)
    assert devices.count(None) == 8  # the environment says cpu
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert devices.count(None) == 4
    monkeypatch.setattr(devices, "ASK", "raise SystemExit('in use')")
    assert devices.count(None) == 1
    devices.simulate(32)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--a=1", "--xla_force_host_platform_device_count=32"]


def test_how_many_files(monkeypatch):
    assert pictures.how_many("few") is None and pictures.how_many("7") == 7
    assert pictures.how_many("all") > 10**12
    with pytest.raises(UsageError, match="--scan=alll is neither"):
        pictures.how_many("alll")


def test_a_broken_recipe_is_all_there_is_to_say(capsys, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    assert command.run(["--config=configs/quickstrat.py"]) == errors.USAGE
    said = capsys.readouterr()
    assert not said.out and "did you mean" in said.err


def doctor(*flags, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "mixjax.doctor", *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_command(tmp_path):
    """For three times the devices of this process, from any folder."""
    recipe = f"--config={tiny.ROOT}/configs/quickstart.py"
    done = doctor(recipe, "--devices=24", "--config.batch=60", cwd=tmp_path)
    assert done.returncode == errors.USAGE and done.stderr == ""
    assert "24 x cpu as data 24 x fsdp 1" in done.stdout
    assert done.stdout.splitlines()[-3:] == [
        "2 problems:",
        "  1. batch=60 is not a multiple of 24 devices; take 48 or 72.",
        "  2. data.eval_batch=512 is not a multiple of 24 devices; take 504 or 528.",
    ]
    assert not list(tmp_path.iterdir())
    done = doctor(recipe, "--devices=1", "--processes=1", cwd=tmp_path)
    assert done.returncode == errors.DONE
    assert done.stdout.endswith("\nno problem found\n")


def test_help_needs_nothing(tmp_path):
    done = doctor("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == errors.DONE and "--scan=all|N" in done.stdout
    assert "| jax" not in done.stderr.replace("  ", " ")
