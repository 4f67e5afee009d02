"""Importers: records of several formats, read as conversations of a teacher.

Read ``reading`` (files, formats), ``conversation`` (the common form), ``fields``; then the formats themselves.
"""
