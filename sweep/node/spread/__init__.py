"""A launch whose replicas are divided over several nodes: one leads and measures, its partners hold theirs."""
