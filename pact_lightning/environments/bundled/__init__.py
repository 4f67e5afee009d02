"""The bundled world: a procedurally generated multi-turn tool world that needs no files."""
