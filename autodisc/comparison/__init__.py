"""Strategies compared with several seeds: cells that are computed once, and views over them."""
