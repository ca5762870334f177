"""The machine around a measurement: the lease, which one launch holds at a time, and other processes' activity."""
