"""Searches: proposers that are told measured trials and choose the next; they know neither Ray nor clocks."""
