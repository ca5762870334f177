"""Exchanges files with other tools: writes results as `vllm bench serve` does, and reads the files of other tools."""
