"""Searches: proposers that are told measured probes and propose the next; they know neither Ray nor clocks."""
