"""The page of a run: valid HTML without external resources, for any folder."""

import base64
import fcntl
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mixjax.errors import UsageError
from mixjax.report import __main__ as report
from mixjax.report import charts, page, read_run
from mixjax.report.style import STYLE
from mixjax.run import ledger
from tests.run.test_ledger import entry

EMPTY = {"meta", "img", "br", "line", "circle", "polyline"}
EVIL = '<script>alert("x")</script>&'


class Reader(HTMLParser):
    """Checks that tags match, and keeps them."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [] and text.startswith("<!doctype html>")
    return reader


def picture(path, size=(40, 30), noise=False):
    """A PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.zeros((size[1], size[0], 3), np.uint8)
    if noise:
        rows = np.random.default_rng(0).integers(0, 256, rows.shape, np.uint8)
    Image.fromarray(rows).save(path)


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it, with names that look like markup."""
    folder = tmp_path / "run & <b>"
    folder.mkdir()
    lines = [
        {"step": s, "train/loss": 2.0 / s, "train/grad_norm": 10.0**-s, EVIL: s}
        for s in range(1, 6)
    ]
    lines.append({"step": 5, "knn/k=20/top1": 91.25, "health/std": 0.5})
    text = "\n".join(map(json.dumps, lines))
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 6, "train/lo')
    perf = {"step": 5, "perf/step_ms": 100.0, "perf/eta_s": 0.5}
    (folder / "perf.jsonl").write_text(json.dumps(perf) + "\n")
    config = ledger.plain(entry()["config"]) | {"note": EVIL}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env.txt").write_text(f"devices: 8 x cpu\n{EVIL}\n")
    (folder / "git.txt").write_text(f"0123456789abcdef\ndiff {EVIL}\n")
    (folder / "train.log").write_text(f"step 3: features have collapsed {EVIL}\nfine\n")
    ledger.write(folder, entry(protocol=f"knn {EVIL}", step=5, total_steps=10))
    picture(folder / "figures" / "masks_0000005.png")
    return folder


def test_the_page_is_whole_and_alone(run, capsys):
    assert report.run([f"--workdir={run}"]) == 0
    assert "report.html (0.0 MB)" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    reader = read(text)
    assert not reader.all("script") and not reader.all("link")
    assert not re.search(r"https?://|url\(|@import", text)
    assert reader.all("html") == [{"lang": "en"}] and len(reader.all("h1")) == 1
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"] for a in reader.all("a")} == {f"#{name}" for name in ids}
    for image in reader.all("img"):
        assert image["src"].startswith("data:image/") and image["alt"]
    assert all(chart["role"] == "img" for chart in reader.all("svg"))
    labels = " ".join(chart["aria-label"] for chart in reader.all("svg"))
    assert "train/loss, 2 to 0.4" in labels and EVIL in labels


def test_the_page_says_what_there_is(run):
    words = " ".join(read(report.render(read_run.gather(str(run)))).words)
    for text in ("run & <b>", "5 of 10", "91.25", "stopped", "8 x cpu", "0123456789ab"):
        assert text in words, text
    assert "train/loss" in words and "health/std" in words and "(log)" in words
    assert f"features have collapsed {EVIL}" in words and "masks_0000005.png" in words
    assert "metrics.jsonl: line 7 of 7 skipped (the last, half-written)." in words


def test_length_is_known_without_entries(run):
    for path in run.glob("eval/*/*.json"):
        path.unlink()
    assert (
        report.facts(read_run.gather(str(run)))["step"] == "5 of 10"
    )  # 0.5 s / 100 ms


def test_states_of_a_run(run):
    assert read_run.status(run) == "stopped"
    with open(run / ".lock", "w") as lock:
        assert read_run.status(run) == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run.status(run) == "running"
    (run / "DONE").write_text("5\n")
    assert read_run.status(run) == "complete"


def test_what_is_broken_is_noted_and_left_out(run):
    (run / "eval" / "knn" / "9.json").write_text("{")
    (run / "figures" / "masks_0000009.png").write_bytes(b"not a picture")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1], lines[2] = "[]", '{"step": 3, "train/loss": NaN, "text": "x"}'
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (run / "config.json").write_text("{")
    read_it = read_run.gather(str(run))
    assert [x for x, _ in read_it.curves["train/loss"]] == [1, 4, 5]
    words = " ".join(read(report.render(read_it)).words)
    assert "metrics.jsonl: line 2 of 6 skipped." in words
    assert "9.json cannot be read as JSON" in words
    assert "config.json cannot be read as JSON" in words
    assert "masks_0000009.png cannot be read" in words


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    reader = read(report.render(read_run.gather(str(tmp_path))))
    assert not reader.all("section") and "stopped" in reader.words


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ([], "--workdir is missing"),
        (["--workdir=/nowhere"], "--workdir=/nowhere does not exist"),
        (["--workdir={empty}"], "is not a run: no config.json and no metrics in it"),
        (["--workdir={run}", "--out=/nowhere/x.html"], "cannot be written"),
        (["--workdirs=x"], "flag 'workdirs' does not exist; did you mean 'workdir'"),
    ],
)
def test_wrong_flags_are_one_sentence(run, tmp_path, flags, sentence, capsys):
    (tmp_path / "empty").mkdir()
    flags = [f.format(run=run, empty=tmp_path / "empty") for f in flags]
    assert report.run(flags) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_huge_pictures_are_made_smaller(tmp_path):
    picture(tmp_path / "small.png")
    assert "image/png" in page.embedded(tmp_path / "small.png")
    picture(tmp_path / "huge.png", (page.WIDEST * 2, 300), noise=True)
    made = page.embedded(tmp_path / "huge.png")
    data = base64.b64decode(re.search(r"base64,([^\"]*)", made)[1])
    size = Image.open(io.BytesIO(data)).size
    assert size == (page.WIDEST, 150)
    assert f'width="{page.WIDEST}" height="150"' in made
    assert len(data) < (tmp_path / "huge.png").stat().st_size / 3


def test_only_the_newest_pictures_are_shown(run):
    for step in range(report.SHOWN + 3):
        picture(run / "figures" / f"masks_{step:07}.png")
    text = report.render(read_run.gather(str(run)))
    assert text.count("<img") == report.SHOWN and "3 older pictures" in text
    assert f"masks_{report.SHOWN + 2:07}.png" in text and "masks_0000002" not in text


CURVES = {
    "one": [(3, 1.5)],
    "flat": [(1, 2.0), (2, 2.0)],
    "zero": [(0, 0.0), (9, 0.0)],
    "falling": [(x, 5.0 - x) for x in range(10)],
    "wide": [(x, 10.0**-x) for x in range(9)],
    "tiny": [(1, 1e-30), (2, 3e-30)],
    "large": [(1, -1e30), (2, 1e30)],
    "long": [(x, float(x % 7)) for x in range(5000)],
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_stay_in_their_picture(name):
    text = charts.curve(name, CURVES[name])
    read("<!doctype html>" + text)
    numbers = re.findall(r"(-?[\d.]+),(-?[\d.]+)[ \"]", text)
    numbers += re.findall(r'cx="(.*?)" cy="(.*?)"', text)
    assert numbers and len(numbers) <= charts.MOST + 1
    for x, y in numbers:
        assert charts.LEFT <= float(x) <= charts.WIDE - charts.RIGHT
        assert charts.TOP <= float(y) <= charts.HIGH - charts.BOTTOM
    grid = [float(y) for y in re.findall(r'y1="(.*?)"', text)]
    assert 1 <= len(grid) <= 8 and all(0 <= y <= charts.HIGH for y in grid)


def test_curves_go_the_right_way():
    text = charts.curve("falling", CURVES["falling"])
    points = [tuple(map(float, p)) for p in re.findall(r"([\d.]+),([\d.]+)[ \"]", text)]
    down = [y for _, y in points]  # y grows downwards
    assert points == sorted(points) and down == sorted(down) and down[0] < down[-1]
    assert ">1<" in charts.curve("wide", CURVES["wide"])  # 10^0, not its logarithm


def test_thinning_keeps_the_mean_and_the_ends():
    points = [(float(x), float(x % 2)) for x in range(1000)]
    thin = charts.thin(points, 100)
    assert len(thin) == 100 and thin[0] == points[0] and thin[-1] == points[-1]
    assert {y for _, y in thin[1:-1]} == {0.5}
    assert charts.thin(points[:100], 100) == points[:100]


def test_round_numbers_on_the_axis():
    assert charts.ticks(0, 1) == [0, 0.5, 1.0]
    assert charts.ticks(1.9, 8.3) == [2, 4, 6, 8]
    assert charts.ticks(3, 3) == [3]
    assert charts.decades(-2.1, 0.2) == [-2, -1, 0]


def luminance(color):
    """Relative luminance of "#rgb" or "#rrggbb" (WCAG 2)."""
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [
        x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_words_stand_out(theme):
    """Contrast of 4.5 and more, in light and dark (WCAG 2, level AA)."""
    declared = re.findall(r"--(\w+):(#\w+)", STYLE)
    half = len(declared) // 2
    colors = dict(declared[theme * half : (theme + 1) * half])
    for word in ("text", "muted", "line"):
        for back in ("back", "box"):
            pair = sorted(luminance(colors[name]) for name in (word, back))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (word, back)


def test_no_folder_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run"):
        read_run.gather(str(tmp_path))
