"""The gateway: one URL in front of one or more engines. It clips requests, answers some from a cache and routes the
rest; an engine's answer is passed on byte for byte. `app` shows how a request is handled."""
