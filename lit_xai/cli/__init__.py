"""The commands: from a command line to a run. Nothing is imported here, so that `--help` is there at once."""
