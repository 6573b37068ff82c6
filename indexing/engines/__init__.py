"""Indexes over one vector per document: exact, FAISS, sparse vectors and BM25."""
