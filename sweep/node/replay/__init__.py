"""The certificate of a replay: what was sent beside what was recorded."""
