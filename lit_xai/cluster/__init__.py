"""A process among others: signals, signs of life, how far an experiment is."""
