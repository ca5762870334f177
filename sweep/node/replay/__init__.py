"""The certificate of a replay: compares what was sent with what was recorded."""
