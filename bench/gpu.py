"""What a GPU makes of mixjax: speed beside PyTorch, profiles, and runs on CIFAR-10.

    python bench/gpu.py --data=cifar10.npz            nine minutes on one GPU
    python bench/gpu.py --minutes=20 --only=mae_b,cifar,profile
    python bench/gpu.py --tiny                        tiny sizes, to see that it works

The rows come first, the most telling ones ahead: a training step in bfloat16 on images
that are there already, without augmentation. PyTorch's are torch.compile with bfloat16
autocast and a fused optimizer; its ResNet-50 is a classifier and has three passes of
MoCo's four, so that row is compared by operations per second. Then what the two rows
with the lowest rate of operations spend their time on. Then, with --data, whole
training runs that results/ lacks (gpu_runs.py).

Each contender is a process of its own, since neither framework gives memory back to
the other, a process does, and a crash ends one row only; jax takes memory as it needs
it, up to the contender's share. Those of a group take turns, round after round.

What does not fit into --minutes is reported as "no time". The same command goes on
where the last one stopped: what was measured lies in --runs and is taken from there,
for the same device, commit and versions (--fresh: not).
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from support import gpu_runs, gpu_steps, record, take_turns
from support.gpu_steps import Row

START = time.monotonic()
ROUNDS, TURN = 5, 1.0  # turns of a contender, seconds of one
MOCO = "c10_moco:mixture="
ROWS = [  # batches fit 80 GB, of which the contenders of a group get equal shares
    Row("mae_b", "mae_b", "MAE ViT-B", "mixjax", "mae_vitb", 256, 1, 45),
    Row("mae_b_torch", "mae_b", "  PyTorch", "vitmae", "B", 256, 1, 60),
    Row("none", "cifar", "CIFAR ResNet-18 MoCo", "mixjax", MOCO + "none", 512, 1, 35),
    Row("unmix", "cifar", "  with Un-Mix", "mixjax", MOCO + "unmix", 512, 1, 35),
    Row("mixmask", "cifar", "  with MixMask", "mixjax", MOCO + "mixmask", 512, 1, 35),
    Row("both", "cifar", "  with both", "mixjax", MOCO + "both", 512, 1, 40),
    Row("moco", "moco", "MoCo v2 ResNet-50", "mixjax", "in1k_mocov2", 256, 1, 50),
    Row("moco_torch", "moco", "  PyTorch", "resnet", "resnet50", 256, 1, 50),
    Row("mixedae_b", "mixedae", "MixedAE ViT-B", "mixjax", "mixedae_vitb", 256, 1, 60),
    Row("mimae_b", "mimae", "MI-MAE ViT-B, views", "mixjax", "mimae_vitb", 256, 4, 50),
    Row("mae_l", "mae_l", "MAE ViT-L", "mixjax", "mae_vitl", 128, 1, 70),
    Row("mae_l_torch", "mae_l", "  PyTorch", "vitmae", "L", 128, 1, 90),
    Row("simmim", "simmim", "SimMIM Swin-B", "mixjax", "simmim_swinb", 128, 1, 70),
    Row("mae_s", "mae_s", "MAE ViT-S", "mixjax", "mae_vits", 256, 1, 45),
    Row("mae_s_torch", "mae_s", "  PyTorch", "vitmae", "S", 256, 1, 60),
]
SPARE = 6.0  # seconds to end processes in
PROFILED = 45  # seconds for a profile, a guess; most of it is compiled already
CUT = "no time: cut off"
Left = Callable[[], float]  # () -> seconds until the deadline


class Failed(Exception):
    """A contender has no number; the text says why."""


# --- processes -----------------------------------------------------------------------


class Worker(NamedTuple):
    """The process of a contender."""

    process: subprocess.Popen
    errors: object  # the file of its stderr


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there."""
    return os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None


def settings(runs: Path) -> dict[str, str]:
    """The environment of all processes, where the user has not set it."""
    variables = {"JAX_COMPILATION_CACHE_DIR": str(runs.absolute() / "cache")}
    if has_gpu():
        variables["CUDA_VISIBLE_DEVICES"] = "0"
        # Declines cpu.tune()'s pool: one lock for all threads that compile.
        variables["GLIBC_TUNABLES"] = ""
    variables = {name: os.environ.get(name, text) for name, text in variables.items()}
    paths = [str(record.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return variables | {"PYTHONPATH": os.pathsep.join(paths)}


def launch(name: str, share: float, runs: Path) -> Worker:
    """Starts contender `name`, for jax with `share` of the GPU's memory at most."""
    env = settings(runs) | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_CLIENT_MEM_FRACTION": f"{share:.2f}",
        "PYTHONUNBUFFERED": "1",
    }
    return Worker(*take_turns.launch(name, env))


def ask(worker: Worker, word: str, left: Left, line: str = "") -> dict:
    """Sends `line`, if any, and waits for the answer; Failed says why none came."""
    cut = threading.Event()

    def kill():
        cut.set()
        worker.process.kill()

    timer = threading.Timer(max(0.1, left()), kill)
    timer.start()
    try:
        if line:
            worker.process.stdin.write(line + "\n")
            worker.process.stdin.flush()
        answer = take_turns.answer(worker.process, word)
    except BrokenPipeError:
        answer = None
    finally:
        timer.cancel()
    if answer is None:
        raise Failed(CUT if cut.is_set() else last_words(worker))
    return answer


def last_words(worker: Worker) -> str:
    """Why a process ended."""
    code = worker.process.wait()
    worker.errors.seek(0)
    lines = [x.strip() for x in worker.errors.read().splitlines() if x.strip()]
    told = [x.removeprefix("REASON ") for x in lines if x.startswith("REASON ")]
    if told:
        return told[-1]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return gpu_steps.reason(lines[-1] if lines else f"ended with code {code}")


def stop(workers: Collection[Worker]) -> None:
    """Ends processes; their memory is free then."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
    last = time.monotonic() + 5
    for worker in workers:
        try:
            worker.process.wait(timeout=max(0.1, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.process.stdout.close()
        worker.errors.close()


def start(group: list[Row], runs: Path) -> dict[str, Worker]:
    """Starts those of a group that can be: {key: Worker}."""
    there = [row.key for row in group if not gpu_steps.absent(row)]
    return {key: launch(key, 0.9 / len(there), runs) for key in there}


# --- rows ----------------------------------------------------------------------------


def measure(group: list[Row], workers: dict, left: Left, tiny: bool) -> tuple:
    """({key: seconds of every round}, {key: facts}, {key: reason}) of a group."""
    rounds = 1 if tiny else ROUNDS
    early = lambda: left() - (rounds + 1) * TURN * len(group)  # leaves time for turns
    facts, reasons = {}, {}
    for row in group:
        try:
            facts[row.key] = prepare(row, workers, early)
        except Failed as error:
            reasons[row.key] = str(error)
    times = {key: [] for key in facts}
    for key in (key for _ in range(rounds) for key in facts):
        if key in reasons:
            continue
        try:
            found = ask(workers[key], "TURN ", left, "go")
            times[key].append(found["seconds"])
            facts[key]["loss"] = found["loss"]
        except Failed as error:
            reasons[key] = str(error)
    whole = lambda key: times[key] and reasons.get(key, CUT) == CUT
    return {key: times[key] for key in times if whole(key)}, facts, reasons


def prepare(row: Row, workers: dict, left: Left) -> dict:
    """Has a contender compile; its facts."""
    if lacking := gpu_steps.absent(row):
        raise Failed(f"absent: {', '.join(lacking)}")
    check_time(row.seconds, left)
    if row.key not in workers:
        raise Failed(f"no time: not started, {left():.0f} s left")
    ask(workers[row.key], "TRACED ", left)
    begin = time.monotonic()
    facts = ask(workers[row.key], "READY ", left, "go")
    return facts | {"ready_s": time.monotonic() - begin}


def check_time(seconds: float, left: Left) -> None:
    """Failed if less time is left than something needs."""
    if left() < seconds:
        raise Failed(f"no time: about {seconds:.0f} s needed, {left():.0f} s left")


def figures(row: Row, times: dict, facts: dict, first: Row) -> dict:
    """What there is to say of a measured row; first: what it is compared with."""
    own, base = facts[row.key], facts.get(first.key, {})
    work, peak = own.get("work") or base.get("work"), base.get("peak")
    seconds = statistics.median(times[row.key])
    found = {"img_per_sec": row.batch / seconds, "ms": 1e3 * seconds}
    found["tflops_per_sec"] = work / seconds / 1e12 if work else None
    found["mfu"] = work / seconds / peak if work and peak else None
    if row.key != first.key and times.get(first.key):
        pairs = zip(times[row.key], times[first.key], strict=False)
        found["time_ratio"] = statistics.median(a / b for a, b in pairs)
        found["work_ratio"] = work / base["work"]
        # How fast the first one is beside this, per operation.
        found["first_over_this"] = found["time_ratio"] / found["work_ratio"]
    return found | own | {"rounds": times[row.key]}


def describe(row: Row) -> dict:
    """A row before anything is known of it."""
    shown = {"name": row.title.strip(), "of": row.group, "what": row.what}
    return {"key": row.key, **shown, "batch": row.batch, "views": row.views}


def line_of(row: Row, found: dict) -> str:
    """A row as text."""
    if "reason" in found:
        return f"{row.title:24}{found['reason']}"
    mfu = f"{found['mfu']:7.1%}" if found["mfu"] else f"{'-':>7}"
    rate = f"{found['tflops_per_sec']:9.1f}" if found["tflops_per_sec"] else " " * 9
    memory = f"{found['memory_gb']:8.1f}" if found["memory_gb"] else f"{'-':>8}"
    text = f"{row.title:24}{found['img_per_sec']:10.1f}{found['ms']:10.2f}{rate}{mfu}"
    text += memory + ("" if found["loss"] is not None else "  loss not finite")
    if "time_ratio" in found and row.kind == "mixjax":
        text += f"  {found['time_ratio']:.2f} x its time"
    elif "time_ratio" in found:
        text += f"  mixjax is {found['first_over_this']:.2f} x as fast"
    return text + (f"  ({found['note']})" if found["note"] else "")


# --- what is known -------------------------------------------------------------------


class Book:
    """What was found so far, on disk after every entry.

    kept: where the next call reads it, if it has the same machine, code and sizes.
    """

    def __init__(self, path: Path, kept: Path, options):
        self._path, self._kept = path, kept
        words = [w if w[:2] != "--" else without_folder(w) for w in sys.argv[1:]]
        self._facts = {
            "tiny": options.tiny,
            "command": " ".join(["python bench/gpu.py", *words]),
            "commit": options.commit or record.commit(),
            "device": smi("name") or record.processor(),
            "host": {"cpu": record.processor(), "cores": record.cores()},
            "versions": record.versions(),
        }
        self.parts: dict = {"rows": {}, "profiles": {}, "runs": {}}
        same = ("commit", "device", "versions", "tiny")
        self._same = {name: self._facts[name] for name in same}
        if not options.fresh:
            self._read()
        self._write()  # finds out now whether it can

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._kept.read_text())
            if found["same"] == self._same:
                self.parts |= {k: found["parts"][k] for k in ("rows", "profiles")}

    def known(self, part: str, key: str) -> bool:
        """Whether there are figures, not only a reason why there are none."""
        return "reason" not in self.parts[part].get(key, {"reason": ""})

    def put(self, part: str, key: str, found: dict) -> None:
        """Adds an entry, in place of figures only if it has some."""
        if "reason" not in found or not self.known(part, key):
            self.parts[part][key] = found
        self._write()

    def _write(self) -> None:
        lists = {name: list(entries.values()) for name, entries in self.parts.items()}
        replace(self._path, self._facts | lists)
        replace(self._kept, {"same": self._same, "parts": self.parts})


def replace(path: Path, found: dict) -> None:
    """Writes a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(new, path)


def without_folder(flag: str) -> str:
    """--json=/some/where/x.json -> --json=x.json"""
    name, equals, value = flag.partition("=")
    return name + equals + (os.path.basename(value.rstrip("/")) if equals else "")


def smi(fields: str) -> str:
    """What nvidia-smi tells of the first GPU; "" without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# --- the three parts -----------------------------------------------------------------


def speed(rows: list[Row], book: Book, left: Left, options) -> None:
    """Part one: the rows that are still to be measured, group by group."""
    titles = f"{'img/s':>10}{'ms':>10}{'TFLOP/s':>9}{'MFU':>7}{'GB':>8}"
    print(f"{'':24}{titles}", flush=True)
    groups = [[r for r in rows if r.group == g] for g in {r.group: 0 for r in rows}]
    for row in (r for g in groups if is_known(g, book) for r in g):
        print(line_of(row, book.parts["rows"][row.key]) + "  (known)", flush=True)
    todo = [group for group in groups if not is_known(group, book)]
    ahead = 2 if record.cores() > 4 else 1  # the next group imports and traces already
    alive: list[dict[str, Worker]] = []
    try:
        for number, group in enumerate(todo):
            for following in todo[len(alive) : number + ahead]:
                enough = left() > following[0].seconds
                alive.append(start(following, options.runs) if enough else {})
            times, facts, reasons = measure(group, alive[number], left, options.tiny)
            state = smi("clocks.sm,power.draw,temperature.gpu")
            stop(alive[number].values())
            for row in group:
                found = {"reason": reasons.get(row.key)}
                if row.key in times:
                    found = figures(row, times, facts, group[0]) | {"clocks": state}
                book.put("rows", row.key, describe(row) | found)
                print(line_of(row, found), flush=True)
            print(f"{'':24}{time.monotonic() - START:8.0f} s so far", flush=True)
    finally:
        stop([worker for workers in alive for worker in workers.values()])


def is_known(group: list[Row], book: Book) -> bool:
    """Whether nothing of a group is left to be measured here."""
    there = [row for row in group if not gpu_steps.absent(row)]
    return bool(there) and all(book.known("rows", row.key) for row in group)


def profiles(rows: list[Row], book: Book, left: Left, options) -> None:
    """Part two: the two with the lowest rate of operations, of two groups."""
    lowest: dict[str, tuple[float, Row]] = {}
    for row in rows:
        if row.kind == "mixjax" and book.known("rows", row.key):
            rate = book.parts["rows"][row.key]["tflops_per_sec"]
            if row.group not in lowest or rate < lowest[row.group][0]:
                lowest[row.group] = rate, row
    for _, row in sorted(lowest.values(), key=lambda x: x[0])[:2]:
        if not book.known("profiles", row.key):
            book.put("profiles", row.key, profile(row, left, options))
        found = book.parts["profiles"][row.key]
        print("\n".join(lines_of_profile(found)), flush=True)


def profile(row: Row, left: Left, options) -> dict:
    """The profile of a row, or why there is none."""
    found = {"key": row.key, "name": row.title.strip()}
    try:
        check_time(0 if options.tiny else PROFILED, left)
        worker = launch(f"profile:{row.key}", 0.9, options.runs)
        try:
            ask(worker, "TRACED ", left)
            ask(worker, "READY ", left, "go")
            return found | ask(worker, "TURN ", left, "go")
        finally:
            stop([worker])
    except Failed as error:
        return found | {"reason": str(error)}


def lines_of_profile(found: dict) -> list[str]:
    """A profile as text."""
    if "reason" in found:
        return [f"profile of {found['name']}: {found['reason']}"]
    lines = [f"profile of {found['name']}: nothing in it"]
    if found["operations"]:
        ms, busy = found["ms_per_step"], found["busy"]
        lines = [f"profile of {found['name']}: {ms:.2f} ms a step, busy {busy:.0%}"]
    for entry in found["operations"]:
        lines.append(
            f"{entry['share']:7.1%}{entry['ms']:9.3f} ms{entry['calls']:8.1f} x  "
            f"{entry['name'][:44]:46}{entry['where'][-60:]}"
        )
    return lines


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="--config.FIELD=VALUE goes to the runs on CIFAR-10.",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--only", default="", help="rows, groups, profile, runs")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--fresh", action="store_true", help="measure again")
    parser.add_argument("--json", type=Path, default=Path("results/bench_gpu.json"))
    parser.add_argument("--data", help="CIFAR-10 as .npz, for the runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder")
    parser.add_argument("--commit", help="where the folder is no checkout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options, changes = parser.parse_known_args()
    if wrong := [c for c in changes if not c.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}")
    known = {r.key for r in ROWS} | {r.group for r in ROWS} | {"profile", "runs"}
    options.only = set(filter(None, options.only.split(",")))
    if wrong := options.only - known:
        parser.error(f"--only: {', '.join(wrong)} is not among {', '.join(known)}")
    return options, changes


def main() -> None:
    options, changes = arguments()
    rows = [row._replace(batch=16, seconds=1) if options.tiny else row for row in ROWS]
    if options.worker:
        return work(options, {row.key: row for row in rows})
    os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # launch sets its new name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    left = lambda: 60 * options.minutes - (time.monotonic() - START) - SPARE
    wanted = lambda *names: not options.only or options.only & set(names)
    book = Book(options.json, options.runs / "known.json", options)
    rows = [row for row in rows if wanted(row.key, row.group)]
    if options.tiny:
        print("tiny sizes: the figures say nothing but that it works")
    if rows:
        speed(rows, book, left, options)
    if wanted("profile"):
        profiles(rows, book, left, options)
    if options.data and wanted("runs"):
        env = settings(options.runs)
        for name, found in gpu_runs.train(options, changes, left, env):
            book.put("runs", name, found)
            print(f"run {name}: {found}", flush=True)


def work(options, rows: dict[str, Row]) -> None:
    """The worker's side."""
    kind, _, key = options.worker.rpartition(":")
    gpu_steps.worker(
        rows[key],
        seconds=0.05 if options.tiny else TURN,
        tiny=options.tiny,
        trace=options.runs / "trace" / key if kind else None,
    )


if __name__ == "__main__":
    main()
