"""An engine without a model, used to check a measuring client. It is one process, on uvloop and httptools.

It speaks completions, chat and TGI's /generate_stream, with configured timing, faults and limits. With `log` it writes
each request's arrival time from the kernel and the time at which each token was written (`truth.read_log`).
"""
