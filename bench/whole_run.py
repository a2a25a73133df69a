"""A whole run, and what came of it: seconds, memory, and each metric's start and end.

    python bench/whole_run.py --config=configs/quickstart.py \
        --json=results/quickstart.json

Everything but --json goes to mixjax.main, with a fresh folder as --workdir; the run's
last picture lies beside the JSON file, under the same name.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import record


def ends(workdir: Path) -> list[dict]:
    """{metric, step, value} of every metric's first and last value."""
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    rows = []
    for name in sorted({k for line in lines for k in line} - {"step"}):
        points = [(x["step"], x[name]) for x in lines if name in x]
        for step, value in dict([points[0], points[-1]]).items():
            rows.append({"metric": name, "step": step, "value": value})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mixjax.main", *flags, f"--workdir={folder}"]
        start = time.monotonic()
        subprocess.run(command, cwd=record.ROOT, check=True)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        rows = ends(Path(folder))
        record.write(options.json, rows, seconds=round(seconds, 1), memory_gb=peak)
        figures = sorted(Path(folder, "figures").glob("*.png"))
        if figures:
            shutil.copy(figures[-1], options.json.with_suffix(".png"))
    for row in rows:
        print(f"{row['metric']:24} step {row['step']:6}  {row['value']:.6g}")
    print(f"{seconds:.0f} s, {peak:.1f} GB")


if __name__ == "__main__":
    main()
