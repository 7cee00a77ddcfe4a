"""Interactive view of a run's routing of a text: `python -m dsv2 explore RUN [RUN2]`, or `page.view` in a notebook.

The page uses Panel: it shows the matplotlib figures of reports and notebooks, its widgets work in notebooks too, its
server is tornado, which Jupyter needs anyway, and it serves all scripts and fonts from the installed package. No
request leaves the machine, and there is no telemetry (`tests/explore/test_page.py` checks this).
"""
