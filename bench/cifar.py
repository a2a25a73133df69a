"""Every masked method on CIFAR-10, squeezed into a few hundred steps: do they learn?

    python bench/cifar.py --data=cifar10.npz [--steps=400] [--only=mae,mixedae]

Runs the CIFAR recipes one after the other and prints, for each, the loss at the start
and the end (of MI-MAE and MI-SimMIM the reconstruction part), the kNN top-1 of the
untrained network and of the trained one, and for MixedAE the accuracy of the TopK,
averaged over layers, after each quarter of the run, beside its chance level. --data is
an .npz with train_image, train_label, test_image and test_label. --runs keeps the
workdirs and continues in them. Other flags, such as --config.batch=64, go to every run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from support import record

from mixjax.config import registry

METHODS = [
    name
    for name in registry.names("mixjax.methods")
    if (record.ROOT / f"configs/{name}_cifar.py").is_file()
]


def points(workdir: Path) -> dict[str, dict[int, float]]:
    """{metric: {step: value}} of a run."""
    metrics: dict = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            metrics.setdefault(name, {})[step] = value
    return metrics


def accuracy(metrics: dict) -> dict[int, float]:
    """{step: TopK accuracy averaged over layers}; {} without TopK."""
    layers = [v for k, v in metrics.items() if k.startswith("train/topk/layer")]
    return (
        {s: statistics.mean(v[s] for v in layers) for s in layers[0]} if layers else {}
    )


def quarters(values: dict[int, float], steps: int) -> list[float]:
    """The values nearest to the start, a quarter, half, ... of the run."""
    wanted = [1, *(steps * i // 4 for i in (1, 2, 3, 4))]
    return [values[min(values, key=lambda s: abs(s - w))] for w in wanted]


def run(name: str, options, flags: list[str], workdir: Path) -> dict:
    """Trains one recipe and reads what came of it."""
    fields = {"steps": options.steps, "log.every": max(1, options.steps // 40)}
    fields["data.source"] = f"npz:{Path(options.data).absolute()}"
    command = [sys.executable, "-m", "mixjax.main", f"--workdir={workdir}"]
    command += [f"--config=configs/{name}_cifar.py"]
    command += [*(f"--config.{k}={v}" for k, v in fields.items()), *flags]
    subprocess.run(command, cwd=record.ROOT, check=True)
    metrics = points(workdir)
    loss = metrics.get("train/loss_rec", metrics["train/loss"])
    (knn,) = [v for k, v in metrics.items() if k.startswith("knn/") and "top1" in k]
    row = {"name": name, "steps": options.steps}
    row |= {"loss_first": loss[min(loss)], "loss_last": loss[max(loss)]}
    row |= {"knn_untrained": knn[0], "knn_last": knn[max(knn)]}
    row["last"] = {k: v[max(v)] for k, v in metrics.items()}
    row["topk_accuracy"] = []
    if topk := accuracy(metrics):
        row["topk_accuracy"] = quarters(topk, options.steps)
        row["topk_chance"] = next(iter(metrics["train/topk/chance"].values()))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--runs", type=Path, help="keep the workdirs in this folder")
    parser.add_argument("--json", help="write the figures to this file")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = (options.runs or Path(folder)).absolute()
        names = options.only.split(",")
        rows = [run(name, options, flags, runs / name) for name in names]
    print(f"\nCIFAR-10, ViT-Ti, {options.steps} steps")
    print(f"{'':10}{'loss':>16}{'kNN top-1':>18}  TopK accuracy over the run (chance)")
    for row in rows:
        loss = f"{row['loss_first']:.3f} -> {row['loss_last']:.3f}"
        knn = f"{row['knn_untrained']:.2f} -> {row['knn_last']:.2f}"
        topk = " ".join(f"{x:.3f}" for x in row["topk_accuracy"])
        topk += f" ({row['topk_chance']:.2f})" if topk else ""
        print(f"{row['name']:10}{loss:>16}{knn:>18}  {topk}")
    record.write(options.json, rows)


if __name__ == "__main__":
    main()
