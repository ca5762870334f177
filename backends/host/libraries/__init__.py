"""The libraries that the host serves. Each has its own file, which imports the engine's package."""
