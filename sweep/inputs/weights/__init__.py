"""Writes weights as a Hugging Face folder: random weights of an architecture, or those in a GGUF file."""
