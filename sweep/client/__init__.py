"""The measuring client: sends requests on the load's schedule, and timestamps every chunk as it arrives."""
