"""The files of other tools: writes results as `vllm bench serve` saves them, and reads the files of three tools."""
