"""When enough has been drawn: intervals that hold at every look, and which places of an order they decide."""
