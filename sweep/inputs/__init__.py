"""The inputs of a trial: models and their weights, tokenizers, workloads, loads."""
