"""The rule as one primitive, in four implementations behind one interface.

`interface.Kernel` is what they share, `select.choose` picks one. `plain` runs every rule, tensor by
tensor. `xla` runs those that read single coordinates, in blocks; it is the oracle of the others.
`native` (C++) runs the common ones on CPUs. `pallas` runs those with a GRU or an LSTM on GPUs,
where it is asked for.
"""
