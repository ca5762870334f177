"""Programs that convert weights. Each runs in an environment that has its tools."""
