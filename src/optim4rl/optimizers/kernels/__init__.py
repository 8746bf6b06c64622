"""The rule as one primitive, in three implementations behind one interface.

`interface.Kernel` is what they share, `select.choose` picks one. `xla` runs every rule everywhere
and is the oracle of the others; `native` (C++ on CPUs) and `pallas` (GPUs) run the common rules.
"""
