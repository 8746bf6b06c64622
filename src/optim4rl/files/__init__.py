"""Files: atomic writes, seals and lists of checksums, locked folders."""
