"""Pages: what results say, in words, tables and pictures."""
