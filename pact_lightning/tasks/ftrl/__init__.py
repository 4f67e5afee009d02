"""FTRL's and MatchTIR's rows as tasks: ``tasks`` reads files, ``row`` makes a task of a row."""
