"""The machine around a measurement: the lease that only one launch at a time holds, and what others do on it."""
