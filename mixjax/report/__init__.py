"""The report of a run: one HTML file without scripts or external resources.

__main__.py   the command, and the contents of a report
page.py       HTML of pages, tables and pictures
read_run.py   reads the folder of a run
charts.py     curves as SVG
style.py      the style sheet, for light and dark, wide and narrow
"""
