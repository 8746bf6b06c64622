"""Pages: results in words, tables and pictures."""
