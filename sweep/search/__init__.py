"""Searches: proposers that are given measured probes and propose the next one, without Ray and without a clock."""
