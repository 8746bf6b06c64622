"""The convolutional torso's two layers, in two implementations behind one interface.

`interface.ConvLayers` is what they share, `select.choose` picks one. `xla` reads any observations
everywhere and is the oracle of the other; `native` (C++) reads observations of few ones on CPUs.
"""
