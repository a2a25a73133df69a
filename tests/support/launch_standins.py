"""Stand-ins of gcloud, sbatch, python, ... that record how they are called.

Each is one small program in a folder that is first in the PATH. What it prints and
returns is in answers.json, what it was called with goes to calls.jsonl.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(p for s in ("*.sh", "*.sbatch") for p in LAUNCH.rglob(s))
TOOLS = "gcloud sbatch scontrol kubectl docker sky git sudo gcsfuse mountpoint".split()
COMMIT = "0123456789abcdef0123456789abcdef01234567"

RECORD = f"""#!{sys.executable} -IS
import json, os, sys
here = os.path.dirname(os.path.realpath(__file__))
tool, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
def record(**more):
    with open(here + "/calls.jsonl", "a") as f:
        print(json.dumps(dict(tool=tool, argv=argv, **more)), file=f, flush=True)
"""

# Answers by the first pattern that the words contain; the last answer stays.
ANSWER = (
    RECORD
    + """
reads = tool in ("kubectl", "docker") and not sys.stdin.isatty()
record(
    stdin=sys.stdin.buffer.read().decode("latin1") if reads else "",
    files=[a for a in argv if os.path.isfile(a)],
)
for a in argv:  # git archive
    if a.startswith("--output="):
        open(a[9:], "w").write("an archive")
path = here + "/answers.json"
answers = json.load(open(path))
for pattern, replies in answers.items():
    if pattern in " ".join([tool, *argv]):
        out, code = replies.pop(0) if len(replies) > 1 else replies[0]
        json.dump(answers, open(path, "w"))
        print(out, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""
)

# Does as plan.json says for its number and the how manieth start of it this is:
# an exit code; "wait" for TERM, then 75; "deaf" to TERM; "crash", also of what started
# it; or [CODE, STEP], which leaves a checkpoint first. All end once the test is over.
PYTHON = (
    RECORD
    + """
import signal, time
number = os.environ.get("SLURM_PROCID", "0")
workdir = ""
for a in argv:
    if a.startswith("--process="): number = a[10:]
    if a.startswith("--workdir="): workdir = a[10:]
got = []
for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(s, lambda n, f: got.append(signal.Signals(n).name))
seen = here + "/starts." + number
starts = os.path.getsize(seen) if os.path.exists(seen) else 0
open(seen, "a").write(".")
record(gpu=os.environ.get("JAX_LOCAL_DEVICE_IDS"), pid=os.getpid())
plans = json.load(open(here + "/plan.json"))
plan = plans.get(number, [0])
if "--process=" in " ".join(argv):  # all are under way before the first one ends
    while not all(os.path.exists(here + "/starts." + i) for i in plans):
        time.sleep(.02)
todo = plan[min(starts, len(plan) - 1)]
def end_with_the_test():
    if os.path.exists(here + "/over") or not os.path.exists(here): sys.exit(0)
end_with_the_test()
if todo in ("wait", "deaf"):
    while not got or todo == "deaf":
        end_with_the_test()
        time.sleep(.02)
    time.sleep(.1)
    open(here + "/signals." + number, "w").write(" ".join(got))
    sys.exit(75)
if todo == "crash":
    os.kill(os.getppid(), 9)
    sys.exit(9)
if isinstance(todo, list):
    todo, step = todo
    os.makedirs(f"{workdir}/checkpoints/{step}", exist_ok=True)
if len(plan) > 1 or todo: time.sleep(.05)
sys.exit(todo)
"""
)

# Runs the command as each of the tasks in turn and returns the highest exit code.
SRUN = (
    RECORD
    + """
import subprocess
record()
command = argv[[a.startswith("--") for a in argv].index(False):]
codes = []
for i in range(int(os.environ["SLURM_NTASKS_PER_NODE"])):
    code = subprocess.call(command, env=dict(os.environ, SLURM_PROCID=str(i)))
    codes.append(code if code >= 0 else 128 - code)
sys.exit(max(codes))
"""
)


class Standins:
    """The folder of the stand-ins, and scripts of launch/ that meet only them."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder / "bin", folder / "home"
        self.started: list[subprocess.Popen] = []
        self.folder.mkdir()
        self.home.mkdir()
        for name in TOOLS:
            self.add(name, ANSWER)
        self.add("python", PYTHON)
        self.add("srun", SRUN)
        (self.folder / "python3").symlink_to(sys.executable)
        self.plan()
        self.answer({})
        self.env = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "MIXJAX_ENV": str(LAUNCH / "env.example"),
            "PROJECT": "the-project",
            "NAME": "mine",
            "ZONE": "a-zone",
        }

    def add(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def plan(self, plan: dict | None = None) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan or {}))
        for old in (*self.folder.glob("starts.*"), *self.folder.glob("signals.*")):
            old.unlink()

    def answer(self, answers: dict) -> None:
        known = {"git rev-parse": [[COMMIT, 0]], "mountpoint": [["", 1]]}
        (self.folder / "answers.json").write_text(json.dumps(answers | known))

    def command(self, script: str, *args) -> list[str]:
        return [str(LAUNCH / script), *map(str, args)]

    def start(self, script: str, *args, env=None, **more) -> subprocess.Popen:
        process = subprocess.Popen(
            self.command(script, *args),
            env=self.env | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            **more,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Ends whatever a test that failed has left running."""
        (self.folder / "over").touch()  # the stand-ins end, and scripts with them
        for process in self.started:
            with process:  # closes its pipes
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()

    def run(self, script: str, *args, env=None, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(script, *args),
            env=self.env | (env or {}),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            **more,
        )

    def calls(self, *tools: str) -> list[dict]:
        """What was recorded, in order; of these tools only, if any are named."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [c for c in calls if not tools or c["tool"] in tools]

    def words(self, *tools: str) -> list[list[str]]:
        return [c["argv"] for c in self.calls(*tools)]
