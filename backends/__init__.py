"""The engines, one file each, built on the declarations in `base`."""
