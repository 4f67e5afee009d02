"""Importers: records of several formats, read as conversations of a teacher.

Read ``reading`` (files), ``conversation`` (the common form), ``formats`` (the table of formats), ``messages`` and
``parts`` (one message), ``calls``, ``tagged_text``, ``tools``, ``assembly``; then ``toolrl``.
"""
