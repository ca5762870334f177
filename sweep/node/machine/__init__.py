"""The machine around a measurement: the lease that one launch at a time has on it, and what others do on it."""
