"""The convolutional torso's two layers, in two implementations with the same methods.

`select.choose` picks an implementation. `xla` reads any observations on every machine, and the
tests compare `native` with it. `native` (C++) reads observations with few ones on CPUs.
"""
