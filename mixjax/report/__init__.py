"""The report of a run: a single HTML file, no scripts, nothing from elsewhere.

__main__.py   the command, and what a report holds
page.py       pages, tables and pictures as HTML
read_run.py   reads the folder of a run
charts.py     curves as SVG
style.py      how it looks, in light and dark, wide and narrow
"""
