"""Writes weights as a Hugging Face folder: random ones of an architecture, or those of a GGUF file."""
