"""Writes weights as a Hugging Face folder: random weights of an architecture, or weights from a GGUF file."""
