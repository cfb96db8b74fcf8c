"""Numbers -> page: one self-contained HTML file with tables, plots and provenance.

`page.py` writes the page about one run, `comparison.py` the page about several.
"""
