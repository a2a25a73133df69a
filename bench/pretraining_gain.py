"""What pre-training is worth after a few hundred steps on CIFAR-10, by four protocols.

    python bench/pretraining_gain.py --data=cifar10.npz [--steps=600] [--tune=150] \
        [--only=mae]

Pre-trains MAE (ViT-Ti) and MoCo (ResNet-18, a quarter as wide, so that a CPU can), then
measures each by kNN, linear probing, fine-tuning and fine-tuning with 10 % of the
labels, every time beside the same network that was not pre-trained: kNN and the probe
of its first features, fine-tuning from scratch. Each number is one command, which is
printed. --runs keeps the workdirs and continues in them. --data is an .npz with
train_image, train_label, test_image and test_label.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from support import record

NARROW = {
    "model.encoder.widths": "(16, 32, 64, 128)",
    "model.encoder.stem_width": "16",
}
METHODS = {  # recipe, encoder of the evaluations, changes to both
    "mae": ("configs/mae_cifar.py", "vit", {}),
    "moco": ("configs/c10_moco.py:symmetric=1", "resnet18", NARROW),
}
PRE = {  # for so few steps of so few pictures
    "mae": {"batch": 64, "schedule.base": 3e-3},
    "moco": {"batch": 64, "method.objective.queue": 4096, "model.norm.groups": 1},
}
FAST = {"batch": 64, "schedule.base": 8e-3}  # for so few steps
PROTOCOLS = {  # recipe; changes
    "linear": ("configs/linear_cifar.py:encoder={encoder}", {"batch": 64}),
    "finetune": ("configs/finetune_cifar.py:encoder={encoder},strong=0", FAST),
    "lowshot/share=10": (
        "configs/lowshot_cifar.py:encoder={encoder},share=10",
        FAST,
    ),
}


def run(module: str, workdir: Path, *flags: str, **fields) -> None:
    """One command of the project, printed."""
    flags += tuple(f"--config.{k}={v}" for k, v in fields.items())
    command = ["-m", f"mixjax.{module}", f"--workdir={workdir}", *flags]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=record.ROOT, check=True)


def metric(folder: Path, name: str, step: int | None = None) -> float:
    """A metric of the ledger of a run, at `step` or the last."""
    entries = [json.loads(p.read_text()) for p in folder.glob("*.json")]
    entries = {e["step"]: e["metrics"] for e in entries}
    return entries[max(entries) if step is None else step][name]


def measure(name: str, options, runs: Path, flags: list[str]) -> list[dict]:
    """Pre-trains by `name`; {protocol, untrained, trained} of each evaluation."""
    recipe, encoder, both = METHODS[name]
    source = {"data.source": f"npz:{Path(options.data).absolute()}"}
    pre = runs / name
    how = {"evals.knn.bank": 10000, "evals.knn.queries": options.queries}
    how |= {"evals.knn.every_epochs": 0.0, "steps": options.steps}
    how |= source | both | PRE.get(name, {})
    run("main", pre, f"--config={recipe}", *flags, **how)
    run("evaluate", pre)
    (knn,) = (pre / "eval").glob("knn-*")
    top1 = knn.name.replace("-", "/") + "/top1"
    measured = {"protocol": knn.name, "untrained": metric(knn, top1, 0)}
    rows = [{"method": name, **measured, "trained": metric(knn, top1)}]
    for protocol, (recipe, more) in PROTOCOLS.items():
        recipe, values = recipe.format(encoder=encoder), {}
        for kind, begin in (("untrained", ""), ("trained", str(pre))):
            folder = runs / f"{name}_{protocol.split('/')[0]}_{kind}"
            how = {"init_from": begin, "steps": options.tune, **source, **both, **more}
            how |= {"evals.classify.every_epochs": 0.0}
            how |= {"evals.classify.examples": options.queries}
            run("main", folder, f"--config={recipe}", *flags, **how)
            place = folder / "eval" / protocol.replace("/", "-")
            values[kind] = metric(place, f"{protocol}/top1")
        rows.append({"method": name, "protocol": protocol, **values})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--steps", type=int, default=600, help="of pre-training")
    parser.add_argument("--tune", type=int, default=150, help="of each evaluation")
    parser.add_argument("--queries", type=int, default=5000, help="test pictures")
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--runs", help="where the workdirs go; a new folder if not set")
    parser.add_argument("--json", help="write the figures to this file")
    options, flags = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(options.runs or folder)
        for name in options.only.split(","):
            rows += measure(name, options, runs, flags)
    print(
        f"\nCIFAR-10, top-1 of {options.queries} test pictures, {options.steps} steps"
    )
    print(f"{'':8}{'protocol':20}{'not pre-trained':>16}{'pre-trained':>14}")
    for row in rows:
        left, right = f"{row['untrained']:.2f}", f"{row['trained']:.2f}"
        print(f"{row['method']:8}{row['protocol']:20}{left:>16}{right:>14}")
    record.write(options.json, rows)


if __name__ == "__main__":
    main()
