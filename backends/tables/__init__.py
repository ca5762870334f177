"""The flags, routes and messages of each engine, which scripts/engine_tables.py reads from the engine's source."""
