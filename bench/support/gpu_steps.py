"""What gpu.py times: one contender to a process, and the profile of its step.

A contender comes in two stages, so that the work of the processor alone (imports,
tracing) can go on beside another one's turns, and compilation, which tries kernels out
on the GPU, waits for them to be over.
"""

import gzip
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support import record, take_turns

TRACED = 3  # steps in a profile


class Row(NamedTuple):
    """A contender."""

    key: str
    group: str  # the first row of a group is what the others are compared with
    title: str
    kind: str  # mixjax, or what of PyTorch: vitmae, resnet
    what: str  # the recipe with its variants; PyTorch: the size
    batch: int  # images, or views
    views: int  # of an image
    seconds: int  # to compile, warm up and take its turns: a guess


class Ready(NamedTuple):
    """A contender that is compiled."""

    steps: Callable  # n -> loss: n steps without waiting between them, as in training
    facts: dict
    memory: Callable  # () -> gigabytes in use at most, None where not known
    places: Callable  # () -> {operation of the program: place in the model}


NEEDS = {
    "mixjax": ("jax",),
    "vitmae": ("torch", "transformers"),
    "resnet": ("torch", "torchvision"),
}


def absent(row: Row) -> list[str]:
    """The packages that a contender lacks here."""
    return [p for p in NEEDS[row.kind] if importlib.util.find_spec(p) is None]


def reason(error: BaseException | str) -> str:
    """An error as one line without folders."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return re.sub(r"/(?:[\w.+-]+/)+", "", " ".join(text.split()))[:240]


# --- mixjax --------------------------------------------------------------------------


def shrink(config, batch: int) -> None:
    """Makes a recipe tiny; layers, not kinds of layers, go."""
    encoder = config.model.encoder
    if encoder.name == "resnet":
        encoder.image_size, encoder.stem_width = (32, 32), 8
        encoder.layers, encoder.widths = (1, 1), (8, 16)
        config.method.objective.queue = 8 * batch
        return
    encoder.image_size, encoder.width = (64, 64), 32
    if encoder.name == "swin":
        encoder.depths, encoder.heads, encoder.window = (1, 1), (1, 2), 4
        return
    for part in (encoder, config.model.decoder):
        part.width, part.depth, part.heads = 32, 2, 2


def mixjax(row: Row, tiny: bool) -> Callable:
    """A training step of a recipe, bfloat16 on accelerators."""
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    import jax

    from mixjax.config import recipes
    from support import mixjax_step

    file, _, variants = row.what.partition(":")
    config = recipes.load(f"{record.ROOT / 'configs' / file}.py:{variants}")
    if tiny:
        shrink(config, row.batch)
    parts = mixjax_step.make(config, row.batch // row.views)
    lowered = parts.step.lower(*parts.shapes)

    def second():
        begin = time.perf_counter()
        compiled = lowered.compile()
        facts = parts.facts | {"compile_s": time.perf_counter() - begin, "note": ""}
        state, inputs, resident = parts.arguments()

        def steps(count):
            nonlocal state
            for _ in range(count):
                state, metrics = compiled(state, inputs, resident)
            jax.block_until_ready((state, metrics))
            return float(metrics["loss"])

        device = jax.devices()[0]
        return Ready(steps, facts, lambda: memory(device), lambda: places(compiled))

    return second


def memory(device) -> float | None:
    """Gigabytes that were in use at most, where the backend tells."""
    try:
        return device.memory_stats()["peak_bytes_in_use"] / 1e9
    except Exception:  # None, a missing key, or a backend without the call
        return None


def places(compiled) -> dict[str, str]:
    """{operation of the compiled program: where in the model it comes from}."""
    try:
        text = compiled.as_text()
    except Exception:  # a program out of a cache may have none
        return {}
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', text, re.M)
    return {name: where.partition("/")[2] for name, where in found}


# --- PyTorch -------------------------------------------------------------------------


def pytorch(row: Row, tiny: bool) -> Callable:
    """Forward, backward and fused optimizer, bfloat16 autocast, torch.compile."""
    import torch

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    torch.set_float32_matmul_precision("high")
    make = {"vitmae": vitmae, "resnet": resnet}[row.kind]
    model, optimizer, images, loss_of = make(row, tiny, device)
    versions = [f"{p} {sys.modules[p].__version__}" for p in NEEDS[row.kind]]
    facts = {"versions": ", ".join(versions), "note": ""}

    def one(forward):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            loss = loss_of(forward, images)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def second():
        if row.kind == "resnet":
            facts["work"] = work(lambda: loss_of(model, images[:2])) * row.batch / 2
        torch.backends.cudnn.benchmark = True
        forward, begin = torch.compile(model), time.perf_counter()
        try:
            one(forward)
        except Exception as error:  # what can go wrong there depends on the machine
            forward, facts["note"] = model, f"eager; compiled: {reason(error)}"
        facts["compile_s"] = time.perf_counter() - begin

        def steps(count):
            for _ in range(count):
                loss = one(forward)
            return float(loss)  # waits for the last step, and with it for all

        peak = torch.cuda.max_memory_allocated
        return Ready(steps, facts, lambda: peak() / 1e9 if on_gpu else None, dict)

    return second


def vitmae(row: Row, tiny: bool, device: str) -> tuple:
    """(model, optimizer, images, (model, images) -> loss) of transformers' MAE."""
    import step
    import torch

    size = step.SIZES["Ti" if tiny else row.what]
    model = step.vitmae(size, 1 if tiny else None).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    images = torch.randn(row.batch, 3, 224, 224, device=device)
    return model, optimizer, images, lambda model, images: model(images).loss


def resnet(row: Row, tiny: bool, device: str) -> tuple:
    """The same of torchvision's ResNet as a classifier, channels last."""
    import torch
    import torchvision

    name, side = ("resnet18", 32) if tiny else (row.what, 224)
    last = {"device": device, "memory_format": torch.channels_last}
    model = torchvision.models.get_model(name).to(**last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4, fused=True
    )
    images = torch.randn(row.batch, 3, side, side).to(**last)

    def loss_of(model, images):
        labels = torch.arange(len(images), device=device)
        return torch.nn.functional.cross_entropy(model(images), labels)

    return model, optimizer, images, loss_of


def work(loss_of: Callable) -> float:
    """Matrix operations of a forward and backward pass, by PyTorch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss_of().backward()
    return float(counter.get_total_flops())


# --- turns ---------------------------------------------------------------------------


def worker(row: Row, *, tiny: bool, seconds: float, trace: Path | None) -> None:
    """Prepares a contender in two stages, then takes a turn whenever asked to.

    seconds: of a turn. trace: folder for a profile, which is then what a turn is. An
    error ends the process; the last line of its stderr is the reason.
    """
    try:
        second = (mixjax if row.kind == "mixjax" else pytorch)(row, tiny)
        print("TRACED {}", flush=True)
        if not sys.stdin.readline():
            return
        ready = second()
        ready.steps(3)  # the first are slower: memory is taken, kernels are loaded
        if trace:
            return take_turns.serve({}, lambda: profile(ready, trace))
        count = pace(ready.steps, seconds)
        turn = timed(ready.steps, count)
        turn()  # the clocks of an idle GPU are low
        facts = ready.facts | {"memory_gb": ready.memory(), "steps_per_turn": count}
        take_turns.serve(facts, turn)
    except Exception as error:
        print(f"\nREASON {reason(error)}", file=sys.stderr, flush=True)
        sys.exit(1)


def pace(steps: Callable, seconds: float) -> int:
    """How many steps take `seconds`."""
    begin = time.perf_counter()
    steps(3)
    return math.ceil(3 * seconds / (time.perf_counter() - begin))


def timed(steps: Callable, count: int) -> Callable[[], dict]:
    """A turn of `count` steps; it tells the seconds of one, and the last loss."""

    def turn():
        begin = time.perf_counter()
        loss = steps(count)
        seconds = (time.perf_counter() - begin) / count
        return {"seconds": seconds, "loss": loss if math.isfinite(loss) else None}

    return turn


# --- profile -------------------------------------------------------------------------


def profile(ready: Ready, folder: Path) -> dict:
    """Traces a few steps into `folder` -> the summary of the trace."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        ready.steps(TRACED)
    finally:
        jax.profiler.stop_trace()
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
    with gzip.open(files[-1]) as file:
        return summary(json.load(file), ready.places(), TRACED)


def summary(trace: dict, where: dict[str, str], steps: int, most: int = 12) -> dict:
    """The dearest operations of a trace in Chrome's format.

    where: {operation: place in the model}. Operations that differ in a number at the
    end of their names count as one, with the place of the longest. busy: share of the
    time from the first to the last operation in which some operation ran.
    """
    spans = operations(trace)
    if not spans:
        return {"steps": steps, "busy": None, "ms_per_step": None, "operations": []}
    own = own_times(spans)
    groups: dict[str, list] = {}
    for span, seconds in zip(spans, own, strict=True):
        name = re.sub(r"([._]+\d+)+$", "", span["name"])[:80]
        groups.setdefault(name, []).append((seconds, span))
    rows = []
    for name, members in groups.items():
        longest = max(members, key=lambda m: m[0])[1]
        operation = longest.get("args", {}).get("hlo_op", longest["name"])
        total = sum(seconds for seconds, _ in members)
        row = {"name": name, "share": total / max(sum(own), 1e-9)}
        row |= {"ms": total / 1e3 / steps, "calls": len(members) / steps}
        rows.append(row | {"where": where.get(operation, "")[-100:]})
    rows.sort(key=lambda r: -r["share"])
    busy, length = together(spans)
    return {
        "steps": steps,
        "busy": busy / length,
        "ms_per_step": length / 1e3 / steps,
        "operations": rows[:most],
    }


def operations(trace: dict) -> list[dict]:
    """The events that are work of the device: its streams, or what XLA says it ran."""
    events = trace["traceEvents"]
    spans = [e for e in events if e.get("ph") == "X" and e.get("dur", 0) > 0]
    named = {"process_name": {}, "thread_name": {}}
    for e in events:
        if e.get("ph") == "M" and e["name"] in named:
            key = e["pid"], e.get("tid") if e["name"] == "thread_name" else None
            named[e["name"]][key] = str(e["args"]["name"])
    devices = {p for (p, _), n in named["process_name"].items() if "/device:" in n}
    for title in ("Stream", "XLA Ops"):  # of a GPU; of a TPU
        lines = {
            k
            for k, n in named["thread_name"].items()
            if k[0] in devices and n.startswith(title)
        }
        if found := [e for e in spans if (e["pid"], e.get("tid")) in lines]:
            return found
    return [e for e in spans if "hlo_op" in e.get("args", {})]


def own_times(spans: list[dict]) -> list[float]:
    """The length of each span less what lies within it on the same line."""
    own = [float(s["dur"]) for s in spans]
    line = lambda i: (spans[i]["pid"], spans[i].get("tid"))
    order = sorted(
        range(len(spans)), key=lambda i: (line(i), spans[i]["ts"], -spans[i]["dur"])
    )
    open_: list[int] = []
    for i in order:
        while open_ and (
            line(open_[-1]) != line(i) or end(spans[open_[-1]]) <= spans[i]["ts"]
        ):
            open_.pop()
        if open_:
            own[open_[-1]] = max(0.0, own[open_[-1]] - spans[i]["dur"])
        open_.append(i)
    return own


def end(span: dict) -> float:
    """When it is over."""
    return span["ts"] + span["dur"]


def together(spans: list[dict]) -> tuple[float, float]:
    """(time in which at least one span runs, time from the first to the last)."""
    busy, until = 0.0, -math.inf
    for span in sorted(spans, key=lambda s: s["ts"]):
        busy += max(0.0, end(span) - max(until, span["ts"]))
        until = max(until, end(span))
    return busy, until - min(s["ts"] for s in spans)
