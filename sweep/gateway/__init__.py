"""The gateway: one URL in front of one or more engines. It clips requests, answers some from a cache and routes the
rest; without a cached answer, an engine's bytes pass unchanged. `app` shows how a request is handled."""
