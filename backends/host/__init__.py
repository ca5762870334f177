"""Serves libraries without a server of their own over HTTP, in the engine's own environment."""
