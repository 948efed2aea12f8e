"""From stores to numbers, tables, pictures and one page."""
