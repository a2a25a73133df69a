"""The papers' rows: complete, each with a command or a reason, and our numbers."""

import copy
import json
import re

import pytest

from mixjax import methods, models, paper_tables, results
from mixjax.config import recipes
from mixjax.optim import schedules
from mixjax.paper_tables import (
    commands_of_rows,
    entry_rules,
    match_ledger,
    recipes_of_rows,
    render,
    shown_rows,
)
from mixjax.run import ledger
from tests.support import tiny

ROWS = {row["id"]: row for row in paper_tables.all_rows()}
PLANS = {name: commands_of_rows.plan(row) for name, row in ROWS.items()}
MADE = [name for name, plan in PLANS.items() if not plan.reason]
COMMANDS = sorted(
    {c for n in MADE for c in (PLANS[n].pretrain, PLANS[n].downstream) if c}
)
FILES = sorted(
    {commands_of_rows.file_of(c) for c in COMMANDS}
    | {p.evals for p in PLANS.values()} - {""}
)
BUILT = [
    c
    for c in COMMANDS
    if commands_of_rows.file_of(c) not in recipes_of_rows.NOT_BUILT_YET
]
COUNTS = {
    "mixedae": "A3 36, A4(a) 6, A4(b) 6, A4(c) 6, Figure 6 1, text 1",
    "mixmask": "1 31, 2 12, 3 3, 4 3, 5 28, 6 12, 7 45, 9 16, 10 8, Figure 5 1, "
    "Figure 6 1",
    "unmix": "1 1, 2 1, 3 68, 4 10, 5(a) 21, 5(b) 12, Figure 5 1, Figure 6 1, "
    "Figure 7 1, Figure 8 20, text 3",
    "lam": "1 7",
    "mimae": "1 33, 2 15, 3(a) 6, 3(b) 6, 3(c) 2, 4 8, 5 6, Figure 2 1, Figure 3 1, "
    "text 4",
}


# --- the rows ------------------------------------------------------------------------


@pytest.mark.parametrize("name", paper_tables.PAPERS)
def test_all_rows_of_all_tables(name):
    wanted = {}
    for part in COUNTS[name].split(", "):
        table, _, count = part.rpartition(" ")
        table = table if table.startswith(("Figure", "text")) else f"Table {table}"
        wanted[table] = int(count)
    assert {t: len(rows) for t, rows in results.by_table(name).items()} == wanted


def test_rows_are_whole():
    assert len(ROWS) == len(paper_tables.all_rows()) == 444
    assert sum(row["value"] is None for row in ROWS.values()) == 9
    assert len({frozenset(row) for row in ROWS.values()}) == 1
    assert sum(row["quoted"] for row in ROWS.values()) == 108


def test_values_are_those_of_the_papers(shared):
    file = shared / "spec" / "targets.json"
    if not file.exists():
        pytest.skip(f"needs {file}, which is not here")
    fields = ("method", "mixture", "backbone", "pretrain_data", "epochs", "protocol")
    fields += ("dataset", "metric", "value", "quoted", "paper", "table")
    for row in json.loads(file.read_text())["rows"]:
        assert {k: row[k] for k in fields} == {k: ROWS[row["id"]][k] for k in fields}


def test_what_must_not_be_graded():
    assert sum(not paper_tables.gradable(row) for row in ROWS.values()) == 17
    assert not paper_tables.gradable(ROWS["mimae-text-headline-400-top1"])
    assert paper_tables.gradable(ROWS["mimae-t1-mi-mae-400-finetune-top1"])


# --- from rows to commands -----------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_command_or_a_reason(name):
    plan = PLANS[name]
    assert bool(plan.pretrain) != bool(plan.reason)
    assert not (plan.reason and plan.downstream)
    assert "{" not in plan.pretrain + plan.downstream


def test_reasons_are_of_what_is_missing():
    assert len(MADE) == 371


@pytest.mark.parametrize("table", ["REASONS", "BASES", "PRETRAIN", "DOWNSTREAM"])
def test_no_rule_is_idle(table):
    """Each rule is the first that fits at least one row."""
    rules = getattr(recipes_of_rows, table)
    rows = ROWS if table == "REASONS" else MADE
    used = set()
    for name in rows:
        row = ROWS[name] | {"protocol": commands_of_rows.protocol(ROWS[name])}
        fitting = (
            i for i, (where, _) in enumerate(rules) if commands_of_rows.fits(row, where)
        )
        used.add(next(fitting, None))
    assert set(range(len(rules))) <= used


def test_every_contradiction_is_somewhere():
    remarks = " ".join(render.remarks(row) for row in ROWS.values())
    assert all(text in remarks for _, text in shown_rows.CONTRADICTED)


@pytest.mark.parametrize("name", FILES)
def test_files_of_rows_are_there(name):
    """If a file of NOT_BUILT_YET now exists, remove it there."""
    assert (tiny.ROOT / "configs" / name).exists() != (
        name in recipes_of_rows.NOT_BUILT_YET
    )


@pytest.mark.parametrize("command", BUILT)
def test_commands_build(command):
    config = commands_of_rows.config(command)
    network = models.make(config.model)
    methods.make(config.method, network, clock=schedules.Clock(1000, 10))
    assert config.batch > 0


SEEN_AS_OFTEN = {"mimae-text-masks-6-top1": 33, "mimae-text-masks-8-top1": 25}


@pytest.mark.parametrize("name", MADE)
def test_commands_are_of_their_rows(name):
    """Data, length, backbone, mixture and k of the recipe are what is printed."""
    row, config = ROWS[name], match_ledger.recipe(PLANS[name].pretrain)
    assert match_ledger.data_set(config) == row["pretrain_data"]
    if row["epochs"]:
        assert config["epochs"] == SEEN_AS_OFTEN.get(name, row["epochs"])
    kind, size = re.match(r"(ViT|Swin|ResNet)-(\w+)", row["backbone"]).groups()
    encoder = config["model"]["encoder"]
    unclear = row["method"] in ("SimMIM", "MI-SimMIM")
    if kind == "ResNet":
        blocks = sum(encoder["layers"])
        swav = encoder["stem"] == "swav"  # its bottlenecks are called ResNet-18, too
        assert blocks == {"18": 8, "50": 16}[size] or swav
    elif not unclear:
        assert encoder["width"] == {"S": 384, "B": 768, "L": 1024}[size]
    if commands_of_rows.protocol(row).startswith("knn"):
        assert config["evals"]["knn"]["k"] == int(commands_of_rows.protocol(row)[3:])
    if "mixtures" in config["method"] and row["paper"] != "lam":
        mixtures = set((row["mixture"] or "").split("+")) - {""}
        assert set(config["method"]["mixtures"]) == mixtures


def test_commands_are_those_of_the_recipes_own_tables():
    """configs/README.md names every one of them, but for epochs."""
    page = (tiny.ROOT / "configs" / "README.md").read_text()
    written = re.findall(r"`(\w+\.py[^`]*)`", page)
    files = {p.name for p in (tiny.ROOT / "configs").glob("*.py")}
    files -= {f"{name}.py" for name in recipes.NO_RECIPES}
    written = [c for c in written if commands_of_rows.file_of(c) in files]
    same = lambda command: match_ledger.recipe(command) | {"epochs": None}
    known = [same(c) for c in written]
    for command in {PLANS[name].pretrain for name in MADE}:
        assert same(command) in known, command


# --- from entries to rows ------------------------------------------------------------


def whole(command, **changes):
    """What the ledger holds of a complete run of a command."""
    config = copy.deepcopy(match_ledger.recipe(command))
    for name, value in changes.items():
        *sections, last = name.split("__")
        part = config
        for section in sections:
            part = part[section]
        part[last] = value
    size = entry_rules.SETS[match_ledger.data_set(config)][1]
    steps = int(config["epochs"] * (size // config["batch"]))
    return dict(config=config, step=steps, total_steps=steps)


PROTOCOL_NAMES = {"knn5": "knn/k=5", "knn200": "knn/k=200"}
PROTOCOL_NAMES |= {
    "robustness_a": "robust/imagenet_a",
    "robustness_c": "robust/imagenet_c",
}


def protocol_of(name):
    """The protocol of an entry of row `name`: that of its downstream recipe, if any."""
    plan, protocol = PLANS[name], commands_of_rows.protocol(ROWS[name])
    if plan.evals == "probe.py":
        return "probe/epochs=500"
    if protocol in PROTOCOL_NAMES:
        return PROTOCOL_NAMES[protocol]
    sections = match_ledger.recipe(plan.downstream)["evals"].values()
    return next(s["protocol"] for s in sections if "protocol" in s)


def called(row):
    """The name of a row's metric in entries."""
    name = row["metric"]
    return name if name in entry_rules.DENSE else name.lower()


def entry_of(name, value=50.0, **changes):
    """An entry that must count as row `name`."""
    row, plan, protocol = ROWS[name], PLANS[name], protocol_of(name)
    run = whole(plan.pretrain, **changes)
    ledger_run = dict(run, origin={})
    if plan.downstream:
        after = match_ledger.recipe(plan.downstream)
        ledger_run = dict(
            config=after, step=7, total_steps=7, origin=run | {"complete": True}
        )
        ledger_run["origin"]["config_hash"] = ledger.config_hash(run["config"])
    return ledger.make_entry(
        name="test",
        protocol=protocol,
        metrics={f"{protocol}/{called(row)}": value, "examples": 10_000},
        effective_batch=ledger_run["config"]["batch"],
        examples_seen=ledger_run["step"] * ledger_run["config"]["batch"],
        seconds=36.0,
        hardware="1 x cpu",
        commit="0123456789",
        **ledger_run,
    )


ENTRIES = {name: entry_of(name, value=float(i)) for i, name in enumerate(MADE)}


def test_every_row_is_met_by_its_own_run():
    for name, entry in ENTRIES.items():
        numbers, _ = match_ledger.place([ROWS[name]], [entry])
        assert name in numbers


def test_a_run_meets_no_row_of_another_kind():
    """Rows that share a run are the same number in two places, made alike."""
    facts = lambda name: [ROWS[name][f] for f in ("pretrain_data", "dataset", "metric")]
    entries = {PLANS[n]: (n, e) for n, e in ENTRIES.items()}  # one for each plan
    names = {id(entry): name for name, entry in entries.values()}
    numbers_of, strays = match_ledger.place(
        ROWS.values(), [e for _, e in entries.values()]
    )
    assert not strays and set(names.values()) <= numbers_of.keys()
    for other, numbers in numbers_of.items():
        for name in (names[id(number.entry)] for number in numbers):
            assert facts(other) == facts(name), (name, other)
            assert PLANS[other].pretrain == PLANS[name].pretrain, (name, other)


def placed(entry):
    """(rows that an entry is on, why it is not the nearest otherwise)."""
    numbers, strays = match_ledger.place(ROWS.values(), [entry])
    return sorted(numbers), "; ".join(why for _, _, whys in strays for why in whys)


MOCO = "unmix-t3-moco-symmetric-loss-unmix-cifar-10-knn200-top1"


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(epochs=200.0), r"^epochs \(1000.0 -> 200.0\)$"),
        (dict(method__mixtures__unmix__gamma=0.5), "method.mixtures.unmix.gamma"),
        (dict(data__source="folder:pictures"), "data set"),
        (dict(init_from="runs/other"), "init_from"),
        (dict(steps=200), "steps .*saw .* pictures"),
    ],
)
def test_what_makes_another_run_of_it(changes, why):
    source = changes.pop("data__source", None)
    entry = entry_of(MOCO, **changes)
    if source:
        entry["config"]["data"]["source"] = source
    rows, reasons = placed(entry)
    assert rows == [] and re.search(why, reasons)


def test_a_run_must_be_whole():
    entry = entry_of(MOCO)
    assert placed(entry)[0] == [MOCO]
    half = entry | {"step": entry["step"] // 2, "complete": False}
    assert placed(half) == ([], f"stopped at step {half['step']}")
    few = entry | {"step": 100, "total_steps": 100}  # of 5000 pictures, not 50,000
    rows, why = placed(few)
    assert rows == [] and "where the whole run sees 50000000" in why
    assert placed(entry | {"protocol": "knn/k=20"})[0] == []


def test_a_downstream_run_must_be_whole_and_say_where_it_began():
    name = "mixmask-t6-unmix-lowshot1-top1"
    entry = entry_of(name)
    assert placed(entry)[0] == [name]
    assert placed(entry | {"origin": {}})[0] == []
    assert placed(entry | {"step": 3, "complete": False})[0] == []
    early = entry["origin"] | {"complete": False}
    assert placed(entry | {"origin": early})[0] == []


def test_other_files_of_the_same_set_are_the_same_set():
    for source, name in [
        ("npz:/data/cifar10.npz", "CIFAR-10"),
        ("tfds:cifar100", "CIFAR-100"),
        ("folder:/data/tiny-imagenet-200/", "Tiny-ImageNet"),
        ("folder:/data/imagenet", "ImageNet-1K"),
        ("tfds:imagenet2012:5.1.0", "ImageNet-1K"),
        ("folder:/data/ILSVRC2012", "ImageNet-1K"),
        ("tfds:stl10", "STL-10"),
        ("digits", ""),
    ]:
        assert match_ledger.data_set({"data": {"source": source}}) == name


def test_departures_are_told():
    entry = entry_of(MOCO, optim__weight_decay=1.0, seed=3, log__every=1)
    numbers, _ = match_ledger.place(ROWS.values(), [entry])
    (number,) = numbers[MOCO]
    assert number.departs == ["optim.weight_decay (0.0005 -> 1.0)"]
    assert render.ours([number]) == "50.00*"
    assert "departs in optim.weight_decay (0.0005 -> 1.0)" in render.run(MOCO, number)


def test_seeds_are_averaged_and_repetitions_are_not():
    entries = [entry_of(MOCO, value=90.0), entry_of(MOCO, value=92.0, seed=1)]
    numbers, _ = match_ledger.place(ROWS.values(), [*entries, entries[0]])
    assert render.ours(numbers[MOCO]) == "91.00 ± 1.41 of 2 runs"
    assert render.difference(ROWS[MOCO], numbers[MOCO]) == "-1.25"
    early = entries[0] | {"step": 10, "complete": False}  # of the same run
    for order in ([early, entries[0]], [entries[0], early]):
        assert match_ledger.once(order) == [entries[0]]
    assert render.ours([]) == "not run" and render.difference(ROWS[MOCO], []) == ""


def test_no_difference_where_the_number_must_not_be_graded():
    name = "mimae-text-headline-400-top1"
    numbers, _ = match_ledger.place(ROWS.values(), [entry_of(name)])
    assert render.cells(ROWS[name], numbers[name])[4:6] == ("50.00", "")
    assert "contradicted: 84.1 in table 1" in render.cells(ROWS[name], [])[6]


# --- what is printed -----------------------------------------------------------------


def test_runs_are_found_and_printed(tmp_path, capsys):
    ledger.write(tmp_path / "a", entry_of(MOCO, value=91.5))
    stray = entry_of(MOCO, epochs=200.0) | {"name": "other"}
    ledger.write(tmp_path / "b", stray)
    assert results.run([f"--runs={tmp_path}", "--paper=unmix"]) == 0
    printed = capsys.readouterr().out
    (line,) = [x for x in printed.splitlines() if x.startswith(MOCO + " ")]
    assert re.search(r"92.25 +91.50 +-0.75", line)
    assert f"{MOCO}: 91.50, knn/k=200 at step" in printed
    assert f"nearest is {MOCO}, but epochs (1000.0 -> 200.0)" in printed


def test_markdown_is_as_wide_everywhere(capsys):
    assert results.run(["--paper=mixmask", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [re.sub(r"\\.", "", x) for x in lines if x.startswith("|")]
    assert len(table) == 160 + 2 * len(results.by_table("mixmask"))
    assert {x.count("|") for x in table} == {len(render.HEADS) + 1}


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--paper=mimea"], "--paper 'mimea' does not exist; did you mean 'mimae'"),
        (["--run=x"], "flag 'run' does not exist; did you mean 'runs'"),
        (["--runs=/nowhere"], "/nowhere is not a folder of runs"),
        (["--row=mimae"], "--row 'mimae' does not exist"),
        (["--readme"], "--readme goes with --markdown alone"),
        (["--readme", "--markdown", "--runs=."], "--readme goes with --markdown alone"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence, capsys):
    assert results.run(flags) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_commands_of_a_row(capsys):
    assert results.run(["--row=mimae-t5-mi-mae-robustness-c-mce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("--workdir=NEXT --evals=configs/robustness.py")
    assert lines[-2].endswith(
        "finetune_vitb.py:base=1e-3,decay=.75 --config.init_from=RUN"
    )
    assert results.run(["--row=lam-t1-byol-top1"]) == 0
    assert "no such number" in capsys.readouterr().out


def test_written_files_agree_with_the_ledger():
    """python -m mixjax.results --markdown --readme writes them."""
    collected = results.collect([])
    readme = (tiny.ROOT / "README.md").read_text()
    assert results.with_block(readme, results.headlines(collected)) == readme
    long = (tiny.ROOT / "results" / "tables.md").read_text()
    assert results.as_markdown(collected, paper_tables.PAPERS) == long
    assert not collected.strays


def test_a_page_without_markers_is_refused():
    with pytest.raises(results.errors.UsageError, match="has no lines <!-- results"):
        results.with_block("text", "block")
