"""An engine without a model: answers with configured timing, faults and limits, and logs the true times.

It speaks OpenAI completions and chat and TGI's /generate_stream, in one process on uvloop and httptools without a
framework, so that a measuring client can be checked against it: with `log` it writes, for every prompt, the kernel's
arrival stamp of the request and the time of each token's write, by x-request-id (`truth.read_log`). Tokens are due at
arrival + ttft + k × itl, so that delays do not accumulate. Its text is meaningless.
"""
