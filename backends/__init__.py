"""The engines. Each has its own file and builds on the declarations in `base`."""
