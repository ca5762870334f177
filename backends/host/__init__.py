"""The in-process server: serves engine libraries without a server over HTTP, in the engine's environment."""
