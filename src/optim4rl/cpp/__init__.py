"""What the C++ libraries share: their loader, and the headers that they are built with."""
