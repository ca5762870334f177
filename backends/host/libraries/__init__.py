"""The libraries that the host serves, one file each; they import the engine's own package."""
