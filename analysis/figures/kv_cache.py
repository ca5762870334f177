"""Mean KV cache in use, as a share of the engine's pool, and its peak in thin dashes."""

from analysis.plotting.drawing import curve

POSITION = 43
draw = curve("kv_cache_usage_mean", also="kv_cache_usage_max")
