"""Report of runs: curves, scores and trajectories as one HTML page, in a file or served while the run goes on.

Folders of runs enter. A page leaves that needs no network: its data lie in it, compressed, and a script of ours shows
them. ``web/`` holds the page's template, style and script.

Read ``rollouts`` (files of trajectories as rows and bodies), ``heat`` (figures of single tokens), ``charts`` and
``scores`` (figures of a run), ``experts`` (traces with their levels), ``setup`` (a run's recipe); then ``content``
(all of it as one structure), ``page`` and ``server``.
"""
