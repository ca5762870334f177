"""The engines, one file each, on what `base` declares of every engine."""
