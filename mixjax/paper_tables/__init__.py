"""The numbers that the five papers report, one per row, and how mixjax reproduces them.

<paper>.json          every number of every table as printed, with notes on oddities
recipes_of_rows.py    rules from rows to recipes (data)
commands_of_rows.py   applies them: the commands of a row, or why there are none
entry_rules.py        what an entry of the ledger must be to count as a row (data)
match_ledger.py       applies them: finds the rows that an entry belongs to
shown_rows.py         contradictions among the papers, and the rows of the README (data)
render.py             the tables as text or Markdown
"""

import json
from pathlib import Path

PAPERS = ("unmix", "mixmask", "lam", "mixedae", "mimae")
BLANK = {"quoted": False, "note": "", "settings": {}}
# Settings that mark a number as no target: ours is not compared with it.
UNGRADED = ("placeholder", "approximate", "upper_bound", "contradicts")


def paper(name: str) -> dict:
    """A paper's file: title, arxiv, venue and tables."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def rows(name: str) -> list[dict]:
    """The rows of a paper, each with the fields that all rows of its table share.

    Fields: id, paper, table, method, mixture, backbone, pretrain_data, epochs,
    protocol, dataset, settings, metric, value (None if it cannot be read), quoted
    (whether the paper took it from another one), note.
    """
    complete_rows = []
    for table in paper(name)["tables"]:
        shared = table["all"]
        for row in table["rows"]:
            complete = BLANK | shared | row | {"paper": name, "table": table["table"]}
            # Settings are merged one by one; the line above would replace them all.
            complete["settings"] = shared.get("settings", {}) | row.get("settings", {})
            complete_rows.append(complete)
    return complete_rows


def all_rows() -> list[dict]:
    """The rows of all papers."""
    return [row for name in PAPERS for row in rows(name)]


def gradable(row: dict) -> bool:
    """Whether a number of ours may be compared with this one."""
    return row["value"] is not None and not any(map(row["settings"].get, UNGRADED))
