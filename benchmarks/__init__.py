"""Speed, memory and statistics of lit_xai against the bare model calls and the peers: `python -m benchmarks --list`."""
