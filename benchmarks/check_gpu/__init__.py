"""Check of the package on one CUDA card: ``python3 -m benchmarks.check_gpu``, or ``make check-gpu``.

What starts the checks (``__main__``, ``checks``, ``runner``, ``report``) needs Python alone: a package that is missing
or broken fails the checks that use it. ``child`` runs one check; the other files are the checks that are no tests.
"""
