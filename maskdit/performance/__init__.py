"""How fast a config runs, measured (`maskdit bench`) and compiled ahead of time (`maskdit describe --topology`)."""
