"""An engine without a model, in one process on uvloop and httptools, to check a measuring client against.

It speaks completions, chat and TGI's /generate_stream with configured timing, faults and limits. With `log` it writes
the kernel's arrival stamp of each request and the time of each token's write (`truth.read_log`).
"""
