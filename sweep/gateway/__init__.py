"""The gateway: one URL in front of one or several engines, that clips requests, answers some of them itself and spreads
the others. On a miss an engine's bytes pass unchanged. `app` tells the story of a request."""
