"""The scripts of launch/ against stand-ins of the programs that they call."""

import io
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.launch_standins import COMMIT, LAUNCH, SCRIPTS, Standins

CONFIG = "--config=configs/mae_vits.py:size=2"
SPLIT = "--config.data.split=train | part(.8, seed=0)"  # what quoting must survive
WHERE = ["--zone=a-zone", "--project=the-project"]
README = (LAUNCH / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="what it tests is for Linux")


def name(path: Path) -> str:
    return str(path.relative_to(LAUNCH))


@pytest.fixture
def fake(tmp_path):
    standins = Standins(tmp_path)
    yield standins
    standins.stop()


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def wait_for(condition, seconds=20):
    """Until condition() holds; what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


# --- all scripts ---


def shellcheck() -> str | None:
    beside = Path(sys.executable).parent / "shellcheck"
    return shutil.which("shellcheck") or (str(beside) if beside.exists() else None)


def test_shellcheck_is_clean():
    if not (program := shellcheck()):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_can_be_read(path):
    text = path.read_text()
    if path.name != "common.sh":  # which is sourced
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "set -euo pipefail\n" in text
        assert os.access(path, os.X_OK)
    assert max(map(len, text.splitlines())) <= 88


def flags_of(text: str) -> set[str]:
    """The flags that the loop of a script knows, or the function it calls instead."""
    if "\nonly_dry_run " in text:
        return {"--dry_run"}
    loop = text.partition(" in\n    --")[2].partition("\n  esac")[0]
    patterns = re.findall(r"^ *((?:--[\w]+=?\*?(?: \| )?)+)\)", "--" + loop, re.M)
    known = {f for p in patterns for f in re.findall(r"--\w+", p)}
    return known - {"--coordinator", "--process"}  # refused by local.sh


def with_flags() -> list[Path]:
    return [p for p in SCRIPTS if flags_of(p.read_text())]


@pytest.mark.parametrize("path", with_flags(), ids=name)
def test_help_names_all_flags_and_no_other(path, fake):
    done = fake.run(name(path), "--help")
    assert done.returncode == 0
    listed = set(re.findall(r"^ +(--\w+)", done.stdout, re.M))
    assert listed - {"--config"} == flags_of(path.read_text())
    assert not fake.calls()


def test_most_scripts_have_flags():
    small = {"gpu.sh", "common.sh", "slurm/task.sh", "tpu/worker.sh"}
    assert {name(p) for p in SCRIPTS} - {name(p) for p in with_flags()} == small


NEEDS_FLAG = [
    p for p in with_flags() if not re.search("not a flag|only_dry_run", p.read_text())
]


@pytest.mark.parametrize("path", [p for p in NEEDS_FLAG], ids=name)
def test_a_config_must_be_named(path, fake):
    done = fake.run(name(path), "--workdir=/mnt/mixjax/run")
    assert (done.returncode, done.stdout) == (2, "")
    word = "--to=DIR" if "prepare" in name(path) else "--config=FILE"
    assert f"error: {word} is missing" in done.stderr or "sets" in name(path)
    assert done.stderr.count("\n") == 1
    assert not fake.calls()


@pytest.mark.parametrize(
    "path", [p for p in with_flags() if p not in NEEDS_FLAG], ids=name
)
def test_other_flags_are_refused(path, fake):
    done = fake.run(name(path), "--spto")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --spto is not a flag of ")
    assert not fake.calls()


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "NAME"])
@pytest.mark.parametrize("script", ["queue", "setup", "run", "logs", "status", "stop"])
def test_names_are_asked_for(script, missing, fake):
    env = {
        "MIXJAX_ENV": "/nowhere",
        "ACCELERATOR": "v6e-8",
        "RUNTIME": "r",
        missing: "",
    }
    done = fake.run(f"tpu/{script}.sh", *[CONFIG] * (script == "run"), env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing} is not set")
    assert not fake.calls("gcloud")


def test_what_is_exported_wins_over_the_file(fake):
    done = fake.run("tpu/queue.sh", "--dry_run", env={"ACCELERATOR": "v5p-128"})
    assert "--accelerator-type=v5p-128" in done.stdout
    assert "--runtime-version=v2-alpha-tpuv6e" in done.stdout  # of the file


# --- README.md ---


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("launch/")])
def test_commands_of_the_readme_work(line, fake, tmp_path):
    """With --dry_run: they show commands, and run nothing."""
    script, *args = shlex.split(line.replace("/data/archives", str(tmp_path)))
    for archive in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz"):
        (tmp_path / f"ILSVRC2012_{archive}").touch()
    assert os.access(LAUNCH.parent / script, os.X_OK)
    text = (LAUNCH.parent / script).read_text()
    if script == "launch/gpu.sh":
        text = (LAUNCH / "local.sh").read_text()
    for arg in args:
        flag = arg.partition("=")[0]
        if flag.startswith("--") and not flag.startswith("--config"):
            passed_on = {"--workdir"} | ({"--spot"} if "keep" in script else set())
            assert flag in flags_of(text) | passed_on
    done = fake.run(script.removeprefix("launch/"), *args, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not [c for c in fake.calls() if c["tool"] != "git"]
    assert {c["argv"][0] for c in fake.calls("git")} <= {"rev-parse", "status"}


def test_the_readme_names_all_there_is():
    known = "cp kubectl launch/".split()
    assert all(c.startswith(tuple(known)) for c in COMMANDS)
    for path in re.findall(r"launch/[\w./]+\w", README):
        assert (LAUNCH.parent / path).exists() or path == "launch/env", path
    for script in SCRIPTS:
        if name(script) not in ("common.sh", "tpu/worker.sh", "slurm/task.sh"):
            assert script.name in README or script.name == "train.sbatch"


# --- one machine ---


def test_one_process_gets_the_flags_as_they_are(fake, workdir):
    done = fake.run("gpu.sh", CONFIG, f"--workdir={workdir}", SPLIT)
    assert done.returncode == 0
    flags = ["-m", "mixjax.main", CONFIG, f"--workdir={workdir}", SPLIT]
    assert [(c["argv"], c["gpu"]) for c in fake.calls()] == [(flags, None)]


def test_several_processes_find_each_other(fake, workdir):
    flags = [CONFIG, f"--workdir={workdir}"]
    done = fake.run("local.sh", "--processes=3", "--port=7000", *flags)
    assert done.returncode == 0
    meet = ["--coordinator=127.0.0.1:7000", "--processes=3"]
    assert sorted((c["gpu"], c["argv"]) for c in fake.calls()) == [
        (str(i), ["-m", "mixjax.main", *flags, *meet, f"--process={i}"])
        for i in range(3)
    ]


def test_a_dry_run_shows_the_same(fake):
    done = fake.run("local.sh", "--processes=2", "--dry_run", CONFIG, SPLIT)
    first, second = map(shlex.split, done.stdout.splitlines())
    assert first[:5] == ["env", "JAX_LOCAL_DEVICE_IDS=0", "python", "-m", "mixjax.main"]
    assert first[5:7] == [CONFIG, SPLIT]
    assert second[-1] == "--process=1"
    assert not fake.calls()


@pytest.mark.parametrize(
    "flag", ["--processes=0", "--processes=x", "--port=", "--process=1"]
)
def test_wrong_numbers_are_refused(flag, fake):
    done = fake.run("local.sh", CONFIG, flag)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not fake.calls()


def local(fake, workdir, *flags, plan):
    """local.sh without pauses; its exit code and how often each process started."""
    fake.plan(plan)
    pause = ["--pause=0", CONFIG, f"--workdir={workdir}"]
    done = fake.run("local.sh", f"--processes={len(plan)}", *flags, *pause)
    starts = [len((fake.folder / f"starts.{i}").read_text()) for i in plan]
    return done.returncode, starts


@pytest.mark.parametrize("code", [1, 2, 3, 64])
def test_errors_are_final(code, fake, workdir):
    assert local(fake, workdir, plan={"0": [code]}) == (code, [1])


@pytest.mark.parametrize("code", [75, 76, 137])
def test_saved_and_lost_runs_start_again(code, fake, workdir):
    assert local(fake, workdir, plan={"0": [code, code, 0]}) == (0, [3])


def test_75_has_no_limit(fake, workdir):
    assert local(fake, workdir, "--tries=2", plan={"0": [75] * 4 + [0]}) == (0, [5])


@pytest.mark.parametrize("code", [76, 134])
def test_without_progress_it_gives_up(code, fake, workdir):
    assert local(fake, workdir, "--tries=3", plan={"0": [code]}) == (code, [3])


def test_a_new_checkpoint_is_progress(fake, workdir):
    plan = {"0": [76, [76, 9], 76, [76, 10], 76, 3]}
    assert local(fake, workdir, "--tries=3", plan=plan) == (3, [6])
    shutil.rmtree(workdir)
    plan = {"0": [[76, 9], 76, 76, 0]}
    assert local(fake, workdir, "--tries=3", plan=plan) == (76, [3])


def test_a_failure_ends_the_others(fake, workdir):
    plan = {"0": ["wait"], "1": [2], "2": ["wait"]}
    assert local(fake, workdir, plan=plan) == (2, [1, 1, 1])
    assert (fake.folder / "signals.0").read_text() == "SIGTERM"
    assert (fake.folder / "signals.2").read_text() == "SIGTERM"


def test_who_does_not_end_is_killed(fake, workdir):
    plan = {"0": ["deaf"], "1": [1]}
    assert local(fake, workdir, "--grace=1", plan=plan) == (1, [1, 1])
    (pid,) = [c["pid"] for c in fake.calls() if c["argv"][-1] == "--process=0"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_cause_counts_more_than_its_consequences(fake, workdir):
    assert local(fake, workdir, plan={"0": [76], "1": [1], "2": [76]})[0] == 1


def test_a_signal_to_one_process_restarts_all(fake, workdir):
    plan = {"0": [75, 0], "1": ["wait", 0]}
    assert local(fake, workdir, plan=plan) == (0, [2, 2])


def started(fake, workdir, plan, **more):
    """local.sh with all its processes under way."""
    fake.plan(plan)
    flags = [f"--processes={len(plan)}", CONFIG, f"--workdir={workdir}"]
    process = fake.start("local.sh", *flags, **more)
    wait_for(lambda: len(fake.calls("python")) == len(plan))
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_script_saves_and_ends(number, fake, workdir):
    process = started(fake, workdir, {"0": ["wait"], "1": ["wait"]})
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75, errors
    assert len(fake.calls()) == 2 and "again" not in errors
    for i in "01":
        assert (fake.folder / f"signals.{i}").read_text() == "SIGTERM"


def test_a_second_signal_kills(fake, workdir):
    process = started(fake, workdir, {"0": ["deaf"], "1": ["deaf"]})
    process.terminate()
    assert "asked to stop" in process.stderr.readline()
    time.sleep(0.3)  # bash loses a signal that comes while it deals with one
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 137


@linux
def test_ctrl_c_reaches_each_process_once(fake, workdir):
    """In a terminal Ctrl-C goes to all of its foreground; here only to the script."""
    fake.plan({"0": ["wait"]})
    command = fake.command("gpu.sh", CONFIG, f"--workdir={workdir}")
    terminal, inside = pty.openpty()
    login = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", login, *command],
        env=fake.env,
        **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
    )
    fake.started.append(process)
    os.close(inside)
    wait_for(lambda: fake.calls("python"))
    os.write(terminal, b"\x03")
    assert process.wait(20) == 75
    os.close(terminal)
    assert (fake.folder / "signals.0").read_text() == "SIGTERM"


# --- Slurm ---


def test_submit_asks_slurm_for_a_task_per_gpu(fake, workdir):
    flags = [CONFIG, f"--workdir={workdir}", SPLIT]
    done = fake.run(
        "slurm/submit.sh", "--nodes=2", "--gpus=4", "--time=12:00:00", *flags
    )
    assert done.returncode == 0
    assert "less than 104 GPU-hours" in done.stderr
    assert fake.words() == [
        [
            "--nodes=2",
            "--ntasks-per-node=4",
            "--gres=gpu:4",
            "--time=12:00:00",
            f"--job-name=mixjax:{workdir}",
            "--dependency=singleton",
            f"--output={workdir}/slurm/%j.log",
            "launch/slurm/train.sbatch",
            *flags,
        ]
    ]
    assert (workdir / "slurm").is_dir()  # or Slurm could not write the log


def test_a_wrong_time_is_refused(fake):
    done = fake.run("slurm/submit.sh", CONFIG, "--time=1-12")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --time=1-12 is not HH:MM:SS.\n",
    )


def test_the_job_says_how_it_ends():
    lines = (LAUNCH / "slurm/train.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if "#SBATCH" in line}
    assert {"--requeue", "--signal=TERM@300", "--open-mode=append"} <= options
    assert not [o for o in options if "per-task" in o or "bind" in o]


def job(fake, workdir, plan, **env):
    """train.sbatch in a job of 2 nodes with 2 GPUs, both of them this machine."""
    fake.plan(plan)
    slurm = {
        "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_ON_NODE": "32",
    }
    flags = ["--tries=2", CONFIG, f"--workdir={workdir}", SPLIT]
    return fake.run("slurm/train.sbatch", *flags, env=slurm | env)


def test_the_job_starts_a_task_per_gpu(fake, workdir):
    done = job(fake, workdir, {})
    assert done.returncode == 0, done.stderr
    logs = f"{workdir}/slurm/17"
    python = ["-m", "mixjax.main", CONFIG, f"--workdir={workdir}", SPLIT, "--devices=4"]
    assert fake.words("srun") == [
        [
            "--kill-on-bad-exit=1",
            "--cpus-per-task=16",
            f"--output={logs}/task-%t.log",
            "--open-mode=append",
            "launch/slurm/task.sh",
            f"{logs}/codes",
            "python",
            *python,
        ]
    ]
    assert fake.words("python") == [python, python]
    assert not fake.calls("scontrol")


@pytest.mark.parametrize(
    "plan, code, again",
    [
        ({"0": [75], "1": [75]}, 75, True),
        ({"0": [76], "1": [75]}, 76, True),
        ({"0": ["crash"], "1": [75]}, 75, True),  # was killed while it saved
        ({"0": ["crash"], "1": [76]}, 137, True),
        ({"0": [2], "1": [76]}, 2, False),
        ({"0": [3], "1": ["crash"]}, 3, False),
        ({"0": ["crash"], "1": [1]}, 1, False),
        ({"0": [127], "1": [0]}, 127, False),
    ],
)
def test_the_job_is_queued_again_when_that_helps(plan, code, again, fake, workdir):
    assert job(fake, workdir, plan).returncode == code
    assert fake.words("scontrol") == [["requeue", "17"]] * again


def test_a_job_without_progress_is_not_queued_again(fake, workdir):
    lost, saved = {"0": [76], "1": [76]}, {"0": [[76, 5]], "1": [76]}
    for plan in (lost, saved, lost):  # a new checkpoint, and the count begins anew
        job(fake, workdir, plan)
    assert len(fake.calls("scontrol")) == 3
    done = job(fake, workdir, lost)
    assert done.returncode == 76
    assert len(fake.calls("scontrol")) == 3
    assert "giving up" in done.stderr


def test_tasks_and_gpus_must_agree(fake, workdir):
    done = job(fake, workdir, {}, SLURM_GPUS_ON_NODE="8")
    assert done.returncode == 2
    assert "2 tasks on a node with 8 GPUs" in done.stderr
    assert not fake.calls()


def test_the_job_wants_the_folder_of_the_repository(fake, workdir, tmp_path):
    done = job(fake, workdir, {}, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "submit from the folder of the repository" in done.stderr


def test_a_task_outlives_the_signal_until_its_state_is_saved(fake, tmp_path):
    fake.plan({"5": ["wait"]})
    flags = [tmp_path, "python", "-m", "mixjax.main"]
    env = {"SLURM_PROCID": "5"}
    task = fake.start("slurm/task.sh", *flags, env=env, start_new_session=True)
    wait_for(fake.calls)
    time.sleep(0.1)
    os.killpg(task.pid, signal.SIGTERM)  # as Slurm does
    task.communicate(timeout=20)
    assert task.returncode == 75
    assert (tmp_path / "5").read_text() == "75\n"


# --- Cloud TPU VM ---

DESCRIBE = ["describe", "mine", "--format=value(state.state)", *WHERE]
DELETE = ["delete", "mine", "--force", "--quiet", *WHERE]
CREATE = [
    "create",
    "mine",
    "--node-id=mine",
    "--accelerator-type=v6e-8",
    "--runtime-version=v2-alpha-tpuv6e",
]
NOT_FOUND = ["ERROR: (gcloud...describe) NOT_FOUND: Resource was not found.", 1]


def states(fake, *states, **more):
    """Lets gcloud tell these states of the request, one after the other."""
    replies = [NOT_FOUND if s == "MISSING" else [s, 0] for s in states]
    fake.answer({"queued-resources describe": replies} | more)


def requests(fake) -> list[list[str]]:
    """The calls about the request, without what they all begin with."""
    begin = ["compute", "tpus", "queued-resources"]
    calls = [argv for argv in fake.words("gcloud") if argv[2] == "queued-resources"]
    assert all(argv[:3] == begin for argv in calls)
    return [argv[3:] for argv in calls]


@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_a_tpu_is_asked_for_and_waited_for(spot, fake):
    states(fake, "MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = fake.run("tpu/queue.sh", "--poll=0", *spot)
    assert done.returncode == 0, done.stderr
    look = [DESCRIBE]
    assert requests(fake) == look + [CREATE + spot + WHERE] + look * 3
    before, _, _ = done.stderr.partition("mine is WAITING")
    assert "TPU v6e-8 in a-zone" in before and "chip-hour" in before


def test_a_tpu_that_is_there_is_left_alone(fake):
    states(fake, "ACTIVE")
    assert fake.run("tpu/queue.sh", "--recreate").returncode == 0
    assert requests(fake) == [DESCRIBE]


def test_queueing_need_not_wait(fake):
    states(fake, "MISSING", "WAITING_FOR_RESOURCES")
    assert fake.run("tpu/queue.sh", "--no_wait").returncode == 0
    assert fake.run("tpu/queue.sh", "--no_wait").returncode == 0
    assert [r[0] for r in requests(fake)] == ["describe", "create", "describe"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_nothing_is_deleted_without_being_asked(state, fake):
    states(fake, state)
    done = fake.run("tpu/queue.sh", "--spot")
    assert done.returncode == 1
    assert "--recreate" in done.stderr
    assert requests(fake) == [DESCRIBE]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_tpu_that_was_taken_away_is_asked_for_again(state, fake):
    states(fake, "SUSPENDING", state, "PROVISIONING", "ACTIVE")
    done = fake.run("tpu/queue.sh", "--poll=0", "--spot", "--recreate")
    assert done.returncode == 0, done.stderr
    look = [DESCRIBE]
    spot = CREATE + ["--spot"] + WHERE
    assert requests(fake) == look * 2 + [DELETE, spot] + look * 2


def test_a_request_that_always_fails_is_given_up(fake):
    states(fake, "FAILED")
    done = fake.run("tpu/queue.sh", "--poll=0", "--recreate")
    assert done.returncode == 1
    assert [r[0] for r in requests(fake)].count("create") == 4


def test_no_answer_does_not_mean_that_there_is_none(fake):
    fake.answer({"describe": [["ERROR: PERMISSION_DENIED", 1]]})
    done = fake.run("tpu/queue.sh", "--recreate")
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.stderr
    assert requests(fake) == [DESCRIBE]


def test_setup_goes_to_all_workers(fake):
    assert fake.run("tpu/setup.sh", env={"SHARE": "10.0.0.2:/share"}).returncode == 0
    begin = ["compute", "tpus", "tpu-vm"]
    setup = "--command=bash mixjax/worker.sh setup 10.0.0.2:/share"
    files = ["requirements.txt", "launch/tpu/worker.sh"]
    assert fake.words() == [
        [*begin, "ssh", "mine", "--worker=all", "--command=mkdir -p mixjax", *WHERE],
        [*begin, "scp", *files, "mine:mixjax/", "--worker=all", *WHERE],
        [*begin, "ssh", "mine", "--worker=all", setup, *WHERE],
    ]
    assert fake.calls()[1]["files"] == files


def test_run_ships_a_commit_and_starts_it(fake):
    flags = [CONFIG, "--workdir=/mnt/mixjax/run", SPLIT]
    done = fake.run("tpu/run.sh", "--commit=v1", *flags)
    assert done.returncode == 0, done.stderr
    revision, archive = (fake.words("git")[i] for i in (0, -1))
    assert revision == ["rev-parse", "--verify", "--quiet", "v1^{commit}"]
    assert [archive[0], archive[1], archive[3]] == [
        "archive",
        "--format=tar.gz",
        COMMIT,
    ]
    copy, start = fake.calls("gcloud")
    (file,) = copy["files"]  # it was there
    assert archive[2] == f"--output={file}" and Path(file).name == f"{COMMIT}.tar.gz"
    assert not Path(file).exists()  # and is no more
    begin = ["compute", "tpus", "tpu-vm"]
    to = ["mine:mixjax/", "--worker=all"]
    assert copy["argv"] == [*begin, "scp", file, *to, *WHERE]
    assert start["argv"][:5] == [*begin, "ssh", "mine"]
    command = start["argv"][6].removeprefix("--command=")
    remote = ["bash", "mixjax/worker.sh", "start", COMMIT, *flags]
    assert shlex.split(command) == remote


def test_a_run_on_several_hosts_names_its_workdir(fake):
    for script in ("tpu/run.sh", "gke/submit.sh", "sky/submit.sh"):
        done = fake.run(script, CONFIG)
        assert done.returncode == 2
        assert "error: --workdir=DIR is missing" in done.stderr
    assert not fake.calls("gcloud", "kubectl", "sky")


def test_logs_and_status(fake):
    states(fake, "ACTIVE")
    fake.run("tpu/logs.sh", "--worker=3", "--follow", "--lines=7")
    (argv,) = fake.words()
    assert argv[3:6] == ["ssh", "mine", "--worker=3"]
    assert argv[6] == "--command=tail --lines=7 --follow mixjax/run.log"
    done = fake.run("tpu/status.sh")
    assert done.stdout.startswith("ACTIVE\n")
    assert fake.words()[-1][6] == "--command=bash mixjax/worker.sh status"
    states(fake, "SUSPENDED")
    assert fake.run("tpu/status.sh").stdout == "SUSPENDED\n"  # nobody to ask


@pytest.mark.parametrize("flags", [[], ["--delete"]])
def test_stop_deletes_only_if_told_to(flags, fake):
    states(fake, "ACTIVE")
    assert fake.run("tpu/stop.sh", *flags).returncode == 0
    words = [argv for argv in fake.words() if argv[3] != "describe"]
    assert words[0][5:7] == ["--worker=all", "--command=bash mixjax/worker.sh stop"]
    assert [argv[3:] for argv in words[1:]] == ([DELETE] if flags else [])


def test_a_tpu_is_not_deleted_while_its_run_still_saves(fake):
    states(fake, "ACTIVE", **{"worker.sh stop": [["still saving", 1]]})
    assert fake.run("tpu/stop.sh", "--delete").returncode == 1
    assert "delete" not in [r[0] for r in requests(fake)]


def test_stopping_nothing_is_no_error(fake):
    states(fake, "MISSING")
    assert fake.run("tpu/stop.sh", "--delete").returncode == 0
    assert requests(fake) == [DESCRIBE]


def kept(fake, *statuses, states_=("ACTIVE",)):
    """keep.sh while the workers say `statuses`; its exit code and what it did."""
    replies = [[text, code] for text, code in statuses]
    states(fake, *states_, **{"worker.sh status": replies})
    flags = ["--spot", "--poll=0", CONFIG, "--workdir=/mnt/mixjax/run"]
    done = fake.run("tpu/keep.sh", *flags)
    did = []
    for argv in fake.words("gcloud"):
        if argv[3] in ("create", "delete"):
            did.append(argv[3])
        did += re.findall(r"worker\.sh (setup|start)", " ".join(argv))
    return done.returncode, did


RUNS = ("a: state=running commit=0\na line", 0)
BEGIN = ["setup", "start"]


def test_keep_sees_a_run_to_its_end(fake):
    statuses = [RUNS, ("a: state=ended code=0\nb: state=running", 0)]
    statuses += [("a: state=ended code=0\nb: state=ended code=0", 0)]
    assert kept(fake, *statuses) == (0, BEGIN)


def test_keep_ends_with_the_cause(fake):
    text = "a: state=ended code=76\nb: state=ended code=2\nc: state=ended code=0"
    assert kept(fake, RUNS, (text, 0)) == (2, BEGIN)


def test_keep_replaces_a_tpu_that_was_taken_away(fake):
    seen = ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"]
    code, did = kept(fake, RUNS, ("a: state=ended code=0", 0), states_=seen)
    assert (code, did) == (0, BEGIN + ["delete", "create"] + BEGIN)


def test_keep_starts_what_was_killed_from_outside(fake):
    statuses = [("a: state=gone\nb: state=running", 0), ("a: state=ended code=0", 0)]
    assert kept(fake, *statuses) == (0, BEGIN * 2)


def test_keep_looks_twice_before_it_acts(fake):
    blind = ("ssh: connection refused", 255)
    end = ("a: state=ended code=0", 0)
    assert kept(fake, blind, blind, RUNS, end) == (0, BEGIN)
    (fake.folder / "calls.jsonl").unlink()
    assert kept(fake, *[blind] * 5, end) == (0, BEGIN * 2)


# --- what runs on a worker ---


@pytest.fixture
def worker(fake, tmp_path):
    """worker.sh in a folder as on a TPU VM, with an archive to start."""
    folder = tmp_path / "mixjax"
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/python").symlink_to(fake.folder / "python")
    shutil.copy(LAUNCH / "tpu/worker.sh", folder)
    with tarfile.open(folder / f"{COMMIT}.tar.gz", "w:gz") as archive:
        archive.add(LAUNCH, "launch")

    def run(*args):
        return subprocess.run(
            ["bash", folder / "worker.sh", *args],
            env=fake.env | {"HOSTNAME": "w-0"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.folder = folder
    yield run
    run("stop")


@linux
def test_a_worker_starts_once_and_stops(fake, worker, workdir):
    fake.plan({"0": ["wait"]})
    assert "state=none" in worker("status").stdout
    flags = [CONFIG, f"--workdir={workdir}", SPLIT]
    assert f"started commit {COMMIT}" in worker("start", COMMIT, *flags).stdout
    wait_for(fake.calls)
    assert fake.words() == [["-m", "mixjax.main", *flags]]
    assert f"state=running commit={COMMIT}" in worker("status").stdout
    assert "already running" in worker("start", COMMIT, *flags).stdout
    assert "state=ended code=75" in worker("stop").stdout
    assert len(fake.calls()) == 1
    assert "state=ended code=75" in worker("status").stdout
    assert "state=ended code=75" in worker("stop").stdout
    fake.plan({"0": [0]})
    worker("start", COMMIT, *flags)
    wait_for(lambda: "state=ended code=0" in worker("status").stdout)


@linux
def test_a_worker_knows_when_its_run_was_killed(fake, worker, workdir):
    fake.plan({"0": ["wait"]})
    worker("start", COMMIT, CONFIG, f"--workdir={workdir}")
    (process,) = wait_for(fake.calls)
    pid = int((worker.folder / "run.pid").read_text())
    os.killpg(pid if os.getpgid(pid) == pid else os.getpgid(pid), signal.SIGKILL)
    os.kill(process["pid"], signal.SIGKILL)
    wait_for(lambda: "state=gone" in worker("status").stdout)
    # A number that has come to mean another process is not ours.
    with subprocess.Popen(["sleep", "60"]) as other:
        (worker.folder / "run.pid").write_text(str(other.pid))
        assert "state=gone" in worker("status").stdout
        worker("stop")
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("share", ["gs://bucket", "10.0.0.2:/share", None])
def test_a_worker_installs_and_mounts(share, fake, worker):
    (fake.folder / "python3").unlink()
    shutil.copy(fake.folder / "gcloud", fake.folder / "python3")
    done = worker("setup", *[share] * bool(share))
    assert done.returncode == 0, done.stderr
    install = ["-m", "uv", "pip", "install", "--quiet", "--python", "venv/bin/python"]
    install += ["--requirement", "requirements.txt", "jax[tpu]"]
    assert fake.words("python3") == [install]  # venv is there already
    assert fake.calls()[-1]["tool"] == "python"  # the versions
    mount = ["--implicit-dirs", "--rename-dir-limit=100000", "bucket", "/mnt/mixjax"]
    assert fake.words("gcsfuse") == ([mount] if share == "gs://bucket" else [])
    nfs = ["mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/mixjax"]
    assert (nfs in fake.words("sudo")) == (share == "10.0.0.2:/share")


def test_a_worker_mounts_once(fake, worker):
    fake.add("mountpoint", "#!/bin/sh\nexit 0\n")
    (fake.folder / "python3").unlink()
    shutil.copy(fake.folder / "gcloud", fake.folder / "python3")
    assert worker("setup", "gs://bucket").returncode == 0
    assert not fake.calls("gcsfuse", "sudo")


# --- GKE ---

GKE = {"IMAGE": "registry/mixjax", "HOSTS": "4", "CHIPS": "4"}
FLAGS = [CONFIG, "--workdir=/mnt/mixjax/run", SPLIT]


def test_a_jobset_is_filled_in_and_applied(fake):
    done = fake.run("gke/submit.sh", *FLAGS, env=GKE)
    assert done.returncode == 0, done.stderr
    (call,) = fake.calls("kubectl")
    assert call["argv"] == ["apply", "--filename=-"]
    assert not fake.calls("docker")
    jobset = yaml.safe_load(call["stdin"])
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert jobset["metadata"]["name"] == "mine"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "mixjax.main"]
    assert container["args"] == [*FLAGS, "--devices=16"]
    assert container["image"] == f"registry/mixjax:{COMMIT}"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert "16 chip-hours" in done.stderr


def test_a_jobset_restarts_on_75_and_76_and_fails_on_the_rest():
    spec = yaml.safe_load((LAUNCH / "gke/jobset.yaml").read_text())["spec"]
    rules = spec["failurePolicy"]["rules"]
    actions = {
        reason: r["action"] for r in rules for reason in r["onJobFailureReasons"]
    }
    assert actions == {
        "PodFailurePolicy": "FailJobSet",
        "BackoffLimitExceeded": "RestartJobSet",
    }
    assert spec["failurePolicy"]["maxRestarts"] > 0
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [1, 2, 3]
    pod = job["template"]["spec"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    # Kubernetes allows podFailurePolicy only with these.
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert pod["terminationGracePeriodSeconds"] == 300


def test_an_image_is_made_of_the_commit(fake):
    fake.answer({"git archive": [["the commit", 0]]})
    done = fake.run("gke/submit.sh", "--build", "--replace", *FLAGS, env=GKE)
    assert done.returncode == 0, done.stderr
    image = f"registry/mixjax:{COMMIT}"
    build, push = fake.calls("docker")
    assert build["argv"] == [
        "build",
        f"--tag={image}",
        "--file=launch/gke/Dockerfile",
        "-",
    ]
    assert build["stdin"] == "the commit\n"
    assert push["argv"] == ["push", image]
    delete, apply = fake.words("kubectl")
    assert delete == ["delete", "jobset", "mine", "--ignore-not-found"]
    assert apply[0] == "apply"


def test_a_dry_run_shows_the_jobset(fake):
    done = fake.run("gke/submit.sh", "--dry_run", "--build", *FLAGS, env=GKE)
    assert not fake.calls("kubectl", "docker")
    text = done.stdout.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    assert yaml.safe_load(text)["metadata"]["name"] == "mine"


def test_the_image_runs_from_the_folder_of_the_recipes():
    lines = (LAUNCH / "gke/Dockerfile").read_text().splitlines()
    assert {"FROM python:3.12-slim", "WORKDIR /mixjax", "COPY . ."} <= set(lines)


# --- SkyPilot ---


@pytest.mark.parametrize(
    "flags, what",
    [
        (
            ["--gpus=H100:8", "--nodes=2"],
            ["--gpus=H100:8", "--num-nodes=2", "launch/sky/gpu.yaml"],
        ),
        (["--tpu=tpu-v6e-8"], ["--gpus=tpu-v6e-8", "launch/sky/tpu.yaml"]),
    ],
)
def test_a_managed_job_is_launched(flags, what, fake):
    flags = [*flags, "--on_demand", "--yes", *FLAGS]
    done = fake.run("sky/submit.sh", *flags, env={"STORE": "gs://mine"})
    assert done.returncode == 0, done.stderr
    (argv,) = fake.words("sky")
    assert argv[:4] == ["jobs", "launch", "--name=mine", "--env=STORE=gs://mine"]
    words = argv[4].removeprefix("--env=FLAGS=")
    assert shlex.split(words) == FLAGS
    assert argv[5:] == ["--no-use-spot", "--yes", *what]


def test_a_slice_is_one_node(fake):
    done = fake.run("sky/submit.sh", "--tpu=tpu-v6e-8", "--nodes=2", *FLAGS)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("file", ["gpu", "tpu"])
def test_managed_jobs_recover_on_75_and_76_alone(file):
    task = yaml.safe_load((LAUNCH / f"sky/{file}.yaml").read_text())
    assert task["resources"]["job_recovery"] == {
        "recover_on_exit_codes": [75, 76],
        "max_restarts_on_errors": 0,
    }
    assert task["file_mounts"]["/mnt/mixjax"]["source"] == "${STORE}"
    assert set(task["envs"]) == {"STORE", "FLAGS"}


@pytest.mark.parametrize("nodes", [1, 2, None])
def test_a_managed_job_runs_what_was_asked_for(nodes, fake):
    (fake.home / "mixjax-venv/bin").mkdir(parents=True)
    (fake.home / "mixjax-venv/bin/activate").touch()
    task = yaml.safe_load(
        (LAUNCH / f"sky/{'gpu' if nodes else 'tpu'}.yaml").read_text()
    )
    env = {"FLAGS": " ".join(map(shlex.quote, FLAGS))}
    if nodes:
        env |= {
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_RANK": str(nodes - 1),
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        }
    subprocess.run(["bash", "-c", task["run"]], env=fake.env | env, check=True)
    meet = ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1"]
    more = {1: ["--devices=8"], 2: [*meet, "--devices=16"], None: []}[nodes]
    assert fake.words() == [["-m", "mixjax.main", *FLAGS, *more]]


# --- data ---


def tar(path: Path, files: dict[str, bytes], mode="w") -> None:
    with tarfile.open(path, mode) as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path):
    """ImageNet with 2 classes, 5 pictures to train with and 3 to validate."""
    from scipy.io import savemat

    folder = tmp_path / "archives"
    folder.mkdir()
    classes = {}
    for class_, pictures in (("n01", 2), ("n02", 3)):
        files = {f"{class_}_{i}.JPEG": b"picture" for i in range(pictures)}
        tar(folder / "class.tar", files)
        classes[f"{class_}.tar"] = (folder / "class.tar").read_bytes()
    tar(folder / "ILSVRC2012_img_train.tar", classes)
    files = {f"ILSVRC2012_val_{i:08}.JPEG": b"%d" % i for i in (1, 2, 3)}
    tar(folder / "ILSVRC2012_img_val.tar", files)
    synsets = np.zeros(3, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for i, class_ in enumerate(("n02", "n01", "n00")):  # in an order of their own
        synsets[i] = (i + 1, class_, "something")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    data = "ILSVRC2012_devkit_t12/data/"
    files = {
        data + "meta.mat": meta.getvalue(),
        data + "ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n",
    }
    tar(folder / "ILSVRC2012_devkit_t12.tar.gz", files, "w:gz")
    return folder


def imagenet(fake, archives, *flags):
    fake.add("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    flags = [f"--tars={archives}", f"--to={archives.parent}/out", *flags]
    return fake.run("data/prepare_imagenet.sh", *flags)


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_imagenet_as_folders(fake, archives):
    flags = ["--as=folders", "--no_md5", "--expect=2,5,3"]
    out = archives.parent / "out"
    done = imagenet(fake, archives, *flags)
    assert done.returncode == 0, done.stderr
    assert "train: 2 classes, 5 pictures" in done.stderr
    found = tree(out / "train")
    assert sorted(found) == [
        *(f"n01/n01_{i}.JPEG" for i in range(2)),
        *(f"n02/n02_{i}.JPEG" for i in range(3)),
    ]
    # Numbers 2, 1, 2 of the second, first, second synset.
    assert tree(out / "val") == {
        "n01/ILSVRC2012_val_00000001.JPEG": b"1",
        "n01/ILSVRC2012_val_00000003.JPEG": b"3",
        "n02/ILSVRC2012_val_00000002.JPEG": b"2",
    }
    # A class that was not finished is unpacked anew, the rest is left alone.
    shutil.rmtree(out / "train/n01")
    (out / "unpacking").mkdir()
    (out / "train/n02/n02_0.JPEG").write_text("mine")
    assert imagenet(fake, archives, *flags).returncode == 0
    assert tree(out / "train") == found | {"n02/n02_0.JPEG": b"mine"}
    assert not (out / "unpacking").exists()


@pytest.mark.parametrize("expect", ["3,5,3", "2,6,3", "2,5,4"])
def test_too_few_pictures_are_noticed(expect, fake, archives):
    done = imagenet(fake, archives, "--as=folders", "--no_md5", f"--expect={expect}")
    assert done.returncode == 1
    assert "should have" in done.stderr


def test_the_real_numbers_are_the_default():
    text = (LAUNCH / "data/prepare_imagenet.sh").read_text()
    assert "expect=1000,1281167,50000" in text


def test_damaged_archives_are_noticed(fake, archives):
    done = imagenet(fake, archives, "--as=folders", "--expect=2,5,3")
    assert done.returncode == 1
    assert "an archive is damaged" in done.stderr
    assert not (archives.parent / "out").exists()


def test_a_missing_archive_is_named(fake, archives):
    (archives / "ILSVRC2012_img_val.tar").unlink()
    done = imagenet(fake, archives, "--as=tfds")
    assert done.returncode == 2
    assert "ILSVRC2012_img_val.tar is missing" in done.stderr


def test_imagenet_as_tfds(fake, archives):
    out = archives.parent / "out"
    flags = [f"--tars={archives}", f"--to={out}", "--as=tfds", "--no_md5"]
    for _ in range(2):
        assert fake.run("data/prepare_imagenet.sh", *flags).returncode == 0
    prepare = ["-m", "mixjax.prepare", "imagenet2012", f"--data_dir={out}"]
    assert fake.words() == [prepare] * 2
    linked = {p.name: p.resolve() for p in (out / "downloads/manual").iterdir()}
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    assert linked == {n: archives / n for n in names}


def test_other_sets_are_prepared_one_by_one(fake, tmp_path):
    fake.answer({})
    fake.add("python", (fake.folder / "sky").read_text())
    fake.answer({"cifar100": [["no space", 1]]})
    done = fake.run("data/prepare_sets.sh", f"--to={tmp_path}", "small", "mnist")
    names = [argv[2] for argv in fake.words("python")]
    assert names == ["cifar10", "cifar100", "stl10", "mnist"]
    assert fake.words()[0] == [
        "-m",
        "mixjax.prepare",
        names[0],
        f"--data_dir={tmp_path}",
    ]
    assert (done.returncode, done.stderr) == (
        1,
        "no space\nerror: not prepared: cifar100\n",
    )


def test_the_transfer_sets_are_those_of_the_recipe(fake, tmp_path):
    text = (LAUNCH.parent / "configs/transfer.py").read_text()
    known = set(re.findall(r'"tfds:([^"]+)"', text))
    done = fake.run("data/prepare_sets.sh", f"--to={tmp_path}", "transfer", "--dry_run")
    assert {line.split()[3] for line in done.stdout.splitlines()} == known
    assert len(known) == 10
