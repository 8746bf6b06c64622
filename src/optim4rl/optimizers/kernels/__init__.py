"""The rule as one primitive, in four implementations behind one interface.

All share the interface `interface.Kernel`; `select.choose` picks one. `plain` runs every rule,
tensor by tensor. `xla` runs rules that read single coordinates, in blocks; the tests compare the
other kernels with it. `native` (C++) runs the common rules on CPUs. `pallas` runs rules with a GRU
or an LSTM on GPUs, if you ask for it.
"""
