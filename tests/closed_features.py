"""Closed forms of the losses on features, in plain numpy."""

from statistics import NormalDist

import numpy as np
import torch

import given

STAGES = ("stage1", "stage2", "stage3")


def array(x):
    return x.detach().double().numpy()


def stages(student, teacher):
    """Pairs of maps, shallow to deep."""
    return [(array(student.features[name]), array(teacher.features[name])) for name in STAGES]


def unit(vector):
    return vector / np.linalg.norm(vector)


def normalised(maps):
    """A BatchNorm as it is made, in training mode."""
    centred = maps - maps.mean(axis=(0, 2, 3), keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)


def relu(x):
    return np.maximum(x, 0)


def convolved(maps, layer):
    """A convolution of odd size that keeps the maps' size."""
    weight, (height, width) = array(layer.weight), maps.shape[2:]
    edge = weight.shape[2] // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    out = np.zeros((len(maps), len(weight), height, width))
    for i, j in np.ndindex(weight.shape[2:]):
        out += np.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def shrunk(maps, size):
    """Maps averaged to ``size`` pixels a side, which divides theirs."""
    cell = maps.shape[2] // size
    return maps.reshape(*maps.shape[:2], size, cell, size, cell).mean(axis=(3, 5))


def hint(student, teacher, batch, loss):
    _, (s, t), _ = stages(student, teacher)
    return np.mean((relu(normalised(convolved(s, loss.regressor.conv))) - t) ** 2)


def at(student, teacher, batch, loss):
    def attention(maps):
        return np.array([unit((sample**2).mean(axis=0).ravel()) for sample in maps])

    return sum(np.mean((attention(s) - attention(t)) ** 2) for s, t in stages(student, teacher))


def fsp(student, teacher, batch, loss):
    def flow(low, high):
        low = shrunk(low, high.shape[2])
        return np.einsum("bdhw,bchw->bdc", high, low) / high.shape[2] / high.shape[3]

    (s1, t1), (s2, t2), (s3, t3) = stages(student, teacher)
    return np.mean((flow(s1, s2) - flow(t1, t2)) ** 2) + np.mean((flow(s2, s3) - flow(t2, t3)) ** 2)


def nst(student, teacher, batch, loss):
    def kernel(x, y):
        return np.mean(
            [
                (unit(c.ravel()) @ unit(d.ravel())) ** 2
                for a, b in zip(x, y, strict=True)
                for c in a
                for d in b
            ]
        )

    return sum(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in stages(student, teacher))


def vid(student, teacher, batch, loss):
    def mean(maps, layers):
        first, second, third = layers[::2]
        return convolved(relu(convolved(relu(convolved(maps, first)), second)), third)

    pairs = zip(stages(student, teacher), loss.adapters, strict=True)
    return sum(
        np.mean((mean(s, adapter.regressor) - t) ** 2 / 5 + np.log(5)) / 2 for (s, t), adapter in pairs
    )


def cwd(student, teacher, batch, loss):
    *_, (s, t) = stages(student, teacher)
    (layer, _), _ = loss.adapter
    s = relu(normalised(convolved(s, layer)))
    divergences = []
    for b, c in np.ndindex(t.shape[:2]):
        p, q = (np.exp(maps[b, c]) / np.exp(maps[b, c]).sum() for maps in (t, s))
        divergences.append(np.sum(p * np.log(p / q)))
    return np.mean(divergences)


def pkd(student, teacher, batch, loss):
    *_, (s, t) = stages(student, teacher)
    (layer,) = loss.adapter

    def standardised(channel):
        return (channel - channel.mean()) / (channel.std(ddof=1) + 1e-6)

    s = convolved(s, layer)
    return np.mean([(standardised(s[:, c]) - standardised(t[:, c])) ** 2 for c in range(t.shape[1])]) / 2


def ickd(student, teacher, batch, loss):
    *_, (s, t) = stages(student, teacher)
    layer, _ = loss.adapter

    def correlation(sample):
        rows = sample.reshape(len(sample), -1)
        return np.array([unit(row) for row in rows @ rows.T])

    pairs = zip(normalised(convolved(s, layer)), t, strict=True)
    return np.mean([np.sum((correlation(a) - correlation(b)) ** 2) for a, b in pairs]) / t.shape[1]


def mgd(student, teacher, batch, loss):
    *_, (s, t) = stages(student, teacher)
    (align,), (first, _, second) = loss.adapter, loss.generator
    torch.manual_seed(0)
    kept = array(torch.rand(*t.shape[:2], 1, 1)) >= 0.15
    generated = convolved(relu(convolved(convolved(s, align) * kept, first)), second)
    return np.sum((generated - t) ** 2) / len(t)


def ft(student, teacher, batch, loss):
    def factor(maps, encoder):
        for layer, _ in encoder:
            maps = convolved(maps, layer)
            maps = np.where(maps > 0, maps, 0.1 * maps)
        return np.array([unit(sample.ravel()) for sample in maps])

    *_, (s, t) = stages(student, teacher)
    return np.mean(np.abs(factor(s, loss.adapter) - factor(t, loss.paraphraser.encoder)))


def ab(student, teacher, batch, loss):
    total = 0
    for weight, (s, t), (layer, _) in zip(
        (1 / 4, 1 / 2, 1), stages(student, teacher), loss.adapters, strict=True
    ):
        s, side = normalised(convolved(s, layer)), np.where(t > 0, 1, -1)
        total += weight * np.sum(relu(1 - side * s) ** 2)
    return 3 / 1000 * total / len(batch)


def ofd(student, teacher, batch, loss):
    state, normal = given.teacher_state(given.TEACHER), NormalDist()

    def margin(name):
        shifts, scales = (array(state[f"{name}.norm.{part}"]) for part in ("bias", "weight"))
        return [
            b - abs(g) * normal.pdf(b / abs(g)) / normal.cdf(-b / abs(g))
            if normal.cdf(-b / abs(g)) > 0.001
            else -3 * abs(g)
            for b, g in zip(shifts, scales, strict=True)
        ]

    total = 0
    for i, ((s, t), (layer, _)) in enumerate(zip(stages(student, teacher), loss.adapters, strict=True)):
        s, t = normalised(convolved(s, layer)), np.maximum(t, np.reshape(margin(STAGES[i]), (-1, 1, 1)))
        total += np.sum((s - t)[(s > t) | (t > 0)] ** 2) / 2 ** (2 - i)
    return total / len(batch) / 1000


def reviewkd(student, teacher, batch, loss):
    def hierarchical(s, t):
        sizes = [size for size in (4, 2, 1) if size < len(t[0, 0])]
        weights = 0.5 ** np.arange(len(sizes) + 1)
        errors = [np.mean((shrunk(s, size) - shrunk(t, size)) ** 2) for size in (len(t[0, 0]), *sizes)]
        return np.sum(weights * errors) / weights.sum()

    total, deeper = 0, None
    for fusion, name in zip(loss.fusions, ("embedding", *STAGES[::-1]), strict=True):
        s, t = (array(said.features[name]) for said in (student, teacher))
        s, t = (x.reshape(*x.shape[:2], *(x.shape[2:] or (1, 1))) for x in (s, t))
        s = normalised(convolved(s, fusion.conv1[0]))
        if deeper is not None:
            deeper = np.kron(deeper, np.ones((2, 2)))
            shares = 1 / (1 + np.exp(-convolved(np.concatenate([s, deeper], axis=1), fusion.attention[0])))
            s = s * shares[:, [0]] + deeper * shares[:, [1]]
        total += hierarchical(normalised(convolved(s, fusion.conv2[0])), t)
        deeper = s
    return total


def semckd(student, teacher, batch, loss):
    def projected(maps, projection):
        rows = maps.reshape(len(maps), -1)
        hidden, out = projection.linear1, projection.linear2
        x = relu(rows @ rows.T @ array(hidden.weight).T + array(hidden.bias))
        return [unit(row) for row in x @ array(out.weight).T + array(out.bias)]

    def errors(s, t, layers):
        size = min(s.shape[2], t.shape[2])
        s, t = shrunk(s, size), shrunk(t, size)
        for layer in layers[:6:3]:
            s = relu(normalised(convolved(s, layer)))
        return np.mean((convolved(s, layers[6]) - t) ** 2, axis=(1, 2, 3))

    ours, theirs = zip(*stages(student, teacher), strict=True)
    queries = [projected(maps, query) for maps, query in zip(ours, loss.queries, strict=True)]
    keys = [projected(maps, key) for maps, key in zip(theirs, loss.keys, strict=True)]
    total = 0
    for query, s, regressors in zip(queries, ours, loss.regressors, strict=True):
        losses = [errors(s, t, layers) for t, layers in zip(theirs, regressors, strict=True)]
        for b in range(len(batch)):
            scores = np.exp([query[b] @ key[b] for key in keys])
            total += scores / scores.sum() @ [error[b] for error in losses]
    return total / len(batch) / len(ours)


def split_balance(student, teacher, batch, loss):
    gates, visits = (array(student.features[layer]) for layer in ("gates", "visits"))
    total = 0.0
    for node in range(gates.shape[1]):
        there, right = np.exp(visits[:, node]), 1 / (1 + np.exp(-gates[:, node]))
        share = (there * right).sum() / there.sum()
        depth = int(np.log2(node + 1))
        total -= (np.log(share) + np.log(1 - share)) / 2 / 2**depth
    return total


def exits(student, teacher, batch, loss):
    """After two stages of three, at the size of the third."""

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    p = np.exp(log_softmax(array(student.logits) / 3))
    rows, total = range(len(batch)), 0
    for name, one in zip(STAGES[:2], loss.exits, strict=True):
        x = shrunk(array(student.features[name]), 2)
        for place in (0, 3, 6):
            x = relu(normalised(convolved(x, one.body[place])))
        vectors = x.mean(axis=(2, 3))
        z = vectors @ array(one.classifier.weight).T + array(one.classifier.bias)
        labels = -np.mean(log_softmax(z)[rows, batch.labels])
        divergence = np.mean(np.sum(p * (np.log(p) - log_softmax(z / 3)), axis=1))
        apart = np.mean(np.sum((vectors - array(student.features["embedding"])) ** 2, axis=1))
        total += 0.7 * labels + 0.3 * divergence + 0.03 * apart
    return total


def minilm(student, teacher, batch, loss):
    def attended(outputs, sample, head, one, other):
        width = outputs.features["qkv"].shape[2] // 3
        parts = np.split(array(outputs.features["qkv"])[sample], 3, axis=1)
        half = slice(head * width // 2, (head + 1) * width // 2)
        scores = parts[one][:, half] @ parts[other][:, half].T / np.sqrt(width / 2)
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    total = 0.0
    for pair in ((0, 1), (2, 2)):
        divergences = []
        for sample, head in np.ndindex(len(batch), 2):
            q, p = (attended(said, sample, head, *pair) for said in (student, teacher))
            divergences.append((p * np.log(p / q)).sum(axis=1))
        total += np.mean(divergences)
    return total


CLOSED_FORM = {
    "minilm": minilm,
    "exits": exits,
    "split-balance": split_balance,
    "hint": hint,
    "at": at,
    "fsp": fsp,
    "nst": nst,
    "vid": vid,
    "cwd": cwd,
    "pkd": pkd,
    "ickd": ickd,
    "mgd": mgd,
    "ft": ft,
    "ab": ab,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "semckd": semckd,
}
