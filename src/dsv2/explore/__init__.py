"""What a trained run does with a text: `python -m dsv2 explore RUN [RUN2]`, and `page.view` in a notebook.

The page is Panel's, because its figures are the matplotlib functions that reports and notebooks use, its widgets work
in a notebook as well, its server is tornado, which Jupyter brings anyway, and it serves every script and font from the
installed package: no request leaves this machine, and there is no telemetry (`tests/explore/test_page.py` watches it).
"""
