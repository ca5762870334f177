"""The measuring client: sends requests when the load says so, and stamps every chunk as it arrives."""
