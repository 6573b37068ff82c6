"""Files that survive a crash, their checksums, and arrays and row tables kept in them."""
