"""What each engine accepts, serves and says, read from its own sources by scripts/engine_tables.py."""
