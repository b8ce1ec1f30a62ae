"""What a run is, as data: the tree of settings, their checks, the named presets, and the command line."""
