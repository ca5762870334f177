"""Programs that convert weights, each run in an environment that has the tools for it."""
