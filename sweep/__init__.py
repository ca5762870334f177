"""The commands, the settings, and the types that all rooms share."""
