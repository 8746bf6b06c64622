"""The rule as one primitive, in three implementations behind one interface.

`interface.Kernel` is what they share, `select.choose` picks one. `xla` runs every rule everywhere
and is the oracle of the others; `native` (C++) runs the common rules on CPUs, and `pallas` runs
every rule on GPUs.
"""
