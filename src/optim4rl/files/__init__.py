"""Files: written whole or not at all, sealed with checksums, listed, and locked."""
