"""Tools without a subject of their own, on the ground floor: they import nothing of the package.

``seeds``: seeds that are a function of what they are for. ``files``: files written whole or not at all.
``json_text``, ``json_lines``: strict JSON. ``errors``: errors that several rooms raise. ``imports``: objects by import
path. ``clock``: seconds by part. ``processes``: several processes of one run. ``endpoint``: addresses and keys.
"""
