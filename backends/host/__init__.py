"""Serves engine libraries that have no server of their own over HTTP, in the engine's environment."""
