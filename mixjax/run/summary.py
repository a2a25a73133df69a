"""A few lines about the results of a finished run."""

import json
from pathlib import Path


def summary(workdir: Path) -> list[str]:
    """Lines with the first and last loss and accuracies, the newest figure, the folder.

    Accuracies are all metrics with "top1" in their name. An evaluation at step 0 is one
    of the untrained network.
    """
    text = (workdir / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    accuracies = sorted({name for r in records for name in r if "top1" in name})
    lines = []
    for name in ("train/loss", *accuracies):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            (first_step, first), (last_step, last) = points[0], points[-1]
            start = "untrained" if first_step == 0 else f"step {first_step}"
            lines.append(
                f"{name}  {first:.4g} ({start}) -> {last:.4g} (step {last_step})"
            )
    # The step numbers in their names have leading zeros: the newest sorts last.
    figures = sorted((workdir / "figures").glob("*.png"))
    if figures:
        lines.append(f"picture  {figures[-1]}")
    return [*lines, f"workdir  {workdir}"]
