"""Writes weights as a Hugging Face folder: random ones of an architecture, or a GGUF file's."""
