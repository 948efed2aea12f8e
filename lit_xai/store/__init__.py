"""The stores of an experiment: files that are whole or not there, shards, plans, readers."""
