"""The libraries that can be served in-process. Each has its own file, which imports the engine's package."""
