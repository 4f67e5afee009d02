"""Comparison of runs: what finished runs left is read, compared with intervals, and written as tables and pictures.

Folders of runs enter, or a study: methods, regimes and seeds that are yet to be run. CSV, Markdown and SVG leave.

Read ``results`` (what a run left), ``statistics`` (means and differences with intervals), ``tables`` and ``pictures``;
``inspect_logs`` for another tool's viewer; then, for studies, ``study`` (the file), ``steps`` (the commands of a cell),
``tuning`` and ``processes``.
"""
