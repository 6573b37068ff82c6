"""Indexes over token vectors: exact MaxSim, MUVERA, LEMUR, PLAID, and the stores beneath them."""
