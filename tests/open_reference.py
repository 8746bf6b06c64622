"""OPEN in NumPy and double precision, by its published formulae, of its flat vector."""

import itertools
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
# The files that its authors publish, and a run of their own code: not part of this project.
PUBLISHED = ROOT.parent / "shared" / "data" / "open"
SIZES = {1211: (8, (16, 16)), 3571: (16, (32, 32))}
BETAS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
# An actor and a critic of three layers.
LAYERS = {"actor": (5, 7, 7, 3), "critic": (5, 7, 7, 1)}


def random_vector(size, seed=0):
    """A vector of the published layout."""
    return np.random.default_rng(seed).normal(0, 0.4, size).astype(np.float32)


def without_noise(vector):
    """The same weights with nothing for the noise: the third output is zero."""
    hidden = SIZES[vector.size][1][-1]
    quiet = vector.copy()
    quiet[-3 * hidden - 1] = 0.0  # its bias; the kernel (inputs, outputs) is last of all
    quiet[-3 * hidden :].reshape(hidden, 3)[:, 2] = 0.0
    return quiet


def unpack(vector):
    """The tree's leaves by name, kernels as (inputs, outputs)."""
    hidden, head = SIZES[vector.size]
    shapes = {"hn.bias": (hidden,), "hn": (hidden, hidden), "hr": (hidden, hidden)}
    shapes["hz"] = (hidden, hidden)
    for gate in ("in", "ir", "iz"):
        shapes |= {f"{gate}.bias": (hidden,), gate: (19, hidden)}
    for layer, (n, m) in enumerate(itertools.pairwise((hidden, *head, 3))):
        shapes |= {f"dense{layer}.bias": (m,), f"dense{layer}": (n, m)}
        if layer < 2:
            shapes |= {f"norm{layer}.bias": (m,), f"norm{layer}": (m,)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    assert ends[-1] == vector.size
    parts = np.split(vector.astype(np.float64), ends[:-1])
    return {name: x.reshape(s) for (name, s), x in zip(shapes.items(), parts, strict=True)}


def tree_of(flat):
    """Actor and critic of a flat vector; in each, bias and kernel of layer after layer."""
    tree, start = {}, 0
    for network, sizes in LAYERS.items():
        tree[network] = {}
        for layer, (n, m) in enumerate(itertools.pairwise(sizes)):
            bias, kernel = np.split(flat[start : start + m + n * m], [m])
            tree[network][f"Dense_{layer}"] = {"bias": bias, "kernel": kernel.reshape(n, m)}
            start += m + n * m
    assert start == flat.size == 228
    return tree


def dormancy_of(activation):
    """Dormancy of every unit, of the mean sizes of their activations, for bias and kernel."""
    tree, start = {}, 0
    for network, sizes in LAYERS.items():
        tree[network] = {}
        for layer, m in enumerate(sizes[1:]):
            size = activation[start : start + m].astype(np.float64) + 1e-11
            tree[network][f"Dense_{layer}"] = dict.fromkeys(("bias", "kernel"), size / size.mean())
            start += m
    return tree


def leaves_of(tree):
    """Each leaf with its network and the proportion of its layer."""
    for network, layers in tree.items():
        for layer, tensors in enumerate(layers.values()):
            for x in tensors.values():
                yield network, layer / 2, np.asarray(x, np.float64)


def flat_of(tree):
    """The flat vector of a tree."""
    return np.concatenate([x.ravel() for _, _, x in leaves_of(tree)])


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


class Reference:
    """The published rule without noise: `step` gives the parameters after a gradient."""

    def __init__(self, vector, params, clip=0.5):
        self.clip = clip
        self.weights, self.params = unpack(vector), params.astype(np.float64)
        self.momenta = np.zeros((params.size, 6))
        self.carry = np.zeros((params.size, SIZES[vector.size][0]))

    def step(self, gradient, training, epoch, dormancy):
        """Of flat gradients, proportions, and a tree of dormancy."""
        parts = [(network, x) for network, _, x in leaves_of(tree_of(gradient))]
        norms = {
            network: np.sqrt(sum((x**2).sum() for other, x in parts if other == network))
            for network in LAYERS
        }
        clipped = np.concatenate([x.ravel() * min(1, self.clip / norms[name]) for name, x in parts])
        betas = np.array(BETAS)
        self.momenta = betas * self.momenta + (1 - betas) * clipped[:, None]
        steps = self.networks(self.inputs(clipped, training, epoch, dormancy))
        self.params = self.params - 1e-3 * (steps - steps.mean())
        return self.params

    def inputs(self, gradient, training, epoch, dormancy):
        """19 numbers for each coordinate."""
        log = lambda x: np.log(np.abs(x) + 1e-13)  # noqa: E731
        g, p, m = gradient[:, None], self.params[:, None], self.momenta
        rows = np.concatenate([p, np.sign(m), log(m), np.sign(g), log(g)], axis=1)
        found, start = [], 0
        active = [x for _, _, x in leaves_of(dormancy)]
        for (_, layer, x), units in zip(leaves_of(tree_of(gradient)), active, strict=True):
            own = rows[start : start + x.size]
            own = own / np.sqrt((own**2).mean(0) + 1e-5)
            told = np.broadcast_to(units, x.shape).reshape(-1, 1)
            constant = np.broadcast_to([training, layer, epoch], (x.size, 3))
            found.append(np.concatenate([own, constant, told], axis=1))
            start += x.size
        return np.concatenate(found)

    def networks(self, x):
        """The GRU and its head: `o1 exp(o2 / 1000)`."""
        w, h = self.weights, self.carry
        r = sigmoid(x @ w["ir"] + w["ir.bias"] + h @ w["hr"])
        z = sigmoid(x @ w["iz"] + w["iz.bias"] + h @ w["hz"])
        n = np.tanh(x @ w["in"] + w["in.bias"] + r * (h @ w["hn"] + w["hn.bias"]))
        self.carry = y = (1 - z) * n + z * h
        for layer in range(2):
            y = y @ w[f"dense{layer}"] + w[f"dense{layer}.bias"]
            y = np.maximum(layer_norm(y) * w[f"norm{layer}"] + w[f"norm{layer}.bias"], 0)
        o1, o2, _ = (y @ w["dense2"] + w["dense2.bias"]).T
        return o1 * np.exp(1e-3 * o2)


def random_run(vector, steps=6, seed=0):
    """Parameters, gradients, what is told, and the reference's parameters after each.

    The actor's gradients are clipped, the critic's are too small for it.
    """
    rng = np.random.default_rng(seed)
    params = rng.normal(0, 0.3, 228).astype(np.float32)
    scale = np.concatenate([np.full(122, 0.3), np.full(106, 1e-3)])
    gradients = (scale * rng.normal(size=(steps, 228))).astype(np.float32)
    gradients[-1, 50:60] = 0.0
    told = [(i / steps, i % 2, dormancy_of(rng.exponential(size=32))) for i in range(steps)]
    reference = Reference(vector, params)
    expected = [reference.step(g, *x) for g, x in zip(gradients, told, strict=True)]
    return params, gradients, told, np.stack(expected)


def golden_run(name):
    """The same of the authors' own code: 6 rollouts x 2 epochs x 2 minibatches.

    It was given these gradients as clipped ones, whatever their norm.
    """
    with np.load(PUBLISHED / "golden.npz", allow_pickle=False) as golden:
        found = {key: golden[f"{name}_{key}"] for key in ("parameters", "gradient", "activation")}
        told = zip(golden[f"{name}_training"], golden[f"{name}_batch"], strict=True)
        told = [
            (*x, dormancy_of(active)) for x, active in zip(told, found["activation"], strict=True)
        ]
    return found["parameters"][0], found["gradient"], told, found["parameters"][1:]
