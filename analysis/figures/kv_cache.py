"""Mean KV cache in use, as a share of the engine's pool, and its peak in thin dashes."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 43
draw = partial(against_load, column="kv_cache_usage_mean", also="kv_cache_usage_max")
