"""What the five papers report, a row a number, and how mixjax makes each of them.

<paper>.json          every number of every table as printed, and what is odd about it
recipes_of_rows.py    from rows to recipes, and what a run must be to count: data
commands_of_rows.py   applies the rules: the commands of a row, or why there are none
match_ledger.py       finds the rows that an entry of the ledger belongs to
render.py             the tables as text or Markdown
"""

import json
from pathlib import Path

PAPERS = ("unmix", "mixmask", "lam", "mixedae", "mimae")
BLANK = {"quoted": False, "note": "", "settings": {}}
UNGRADED = ("placeholder", "approximate", "upper_bound", "contradicts")


def paper(name: str) -> dict:
    """title, arxiv, venue and tables of a paper, as its file has them."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def rows(name: str) -> list[dict]:
    """The rows of a paper, whole: what all rows of a table share is put into each.

    Fields: id, paper, table, method, mixture, backbone, pretrain_data, epochs,
    protocol, dataset, settings, metric, value (null where it cannot be read), quoted
    (the paper has it from elsewhere), note.
    """
    found = []
    for table in paper(name)["tables"]:
        shared = table["all"]
        for row in table["rows"]:
            whole = BLANK | shared | row | {"paper": name, "table": table["table"]}
            whole["settings"] = shared.get("settings", {}) | row.get("settings", {})
            found.append(whole)
    return found


def all_rows() -> list[dict]:
    """The rows of all papers."""
    return [row for name in PAPERS for row in rows(name)]


def gradable(row: dict) -> bool:
    """Whether a number of ours may be held against this one at all."""
    return row["value"] is not None and not any(map(row["settings"].get, UNGRADED))
