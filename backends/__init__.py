"""The engines. Each has a separate file and builds on the declarations in `base`."""
