"""The libraries that can be served in-process. Each has a separate file, which imports the engine's package."""
