"""Indexes over token vectors: exact MaxSim, MUVERA, LEMUR, PLAID, and their token store."""
