"""The gateway: one URL in front of one or several engines. It clips requests, answers some of them itself and spreads
the others. On a miss an engine's bytes pass unchanged. `app` follows a request from start to end.
"""
