"""Searches: proposers that get measured trials and choose the next trial; they use neither Ray nor clocks."""
