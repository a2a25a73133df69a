"""What a finished run has to show, in a few lines."""

import json
from pathlib import Path


def summary(workdir: Path) -> list[str]:
    """What a finished run has to show: its numbers from first to last, its pictures."""
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    summary_lines = []
    for name in ("train/loss", *sorted({k for x in lines for k in x if "top1" in k})):
        points = [(x["step"], x[name]) for x in lines if name in x]
        if points:
            (first, was), (last, now) = points[0], points[-1]
            start = "untrained" if first == 0 else f"step {first}"
            summary_lines.append(
                f"{name}  {was:.4g} ({start}) -> {now:.4g} (step {last})"
            )
    figures = sorted((workdir / "figures").glob("*.png"))
    summary_lines += [f"picture  {figures[-1]}"] if figures else []
    return [*summary_lines, f"workdir  {workdir}"]
