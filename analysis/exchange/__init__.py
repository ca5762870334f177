"""The files of other tools: results as `vllm bench serve` saves them, written; those of three tools, read."""
