"""The files of another tool: results as `vllm bench serve` saves them, written and read."""
