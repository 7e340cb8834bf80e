"""Closed forms of the losses on relations and embeddings, in float64 without torch, but for 3x3 convolutions."""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from given import CLASSES, SAMPLES, TEACHER, survey, teacher_state
from kdrun.taps import CLASS_MAPS


def array(x):
    return x.detach().double().numpy()


def both(student, teacher, layer="embedding"):
    return array(student.features[layer]), array(teacher.features[layer])


def linear(module, x):
    return x @ array(module.weight).T + array(module.bias)


def rows_of_length_one(x):
    return np.array([row / np.linalg.norm(row) for row in x])


def standardised(x, eps):
    axes = tuple(place for place in range(x.ndim) if place != 1)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def normalised(norm, x):
    scale, shift = (array(p).reshape(-1, *[1] * (x.ndim - 2)) for p in (norm.weight, norm.bias))
    return scale * standardised(x, 1e-5) + shift


def at_each_place(weight, x):
    return np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def sp(student, teacher, batch, loss):
    s, t = (rows_of_length_one(np.einsum("idhw,jdhw->ij", f, f)) for f in both(student, teacher, "stage3"))
    return np.sum((s - t) ** 2) / len(s) ** 2


def rkd(student, teacher, batch, loss):
    def relations(x):
        size = len(x)
        distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        cosine = np.zeros((size,) * 3)
        for i, j, k in np.ndindex(cosine.shape):
            if i not in (j, k):
                cosine[i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / distance[i, j] / distance[i, k]
        return distance / distance[distance > 0].mean(), cosine

    def smooth_l1(a, b):
        d = np.abs(a - b)
        return np.where(d < 1, d**2 / 2, d - 0.5).mean()

    (ds, cs), (dt, ct) = map(relations, both(student, teacher))
    return 25 * smooth_l1(ds, dt) + 50 * smooth_l1(cs, ct)


def pkt(student, teacher, batch, loss):
    def probabilities(x):
        similar = (rows_of_length_one(x) @ rows_of_length_one(x).T + 1) / 2
        return similar / similar.sum(axis=1, keepdims=True)

    s, t = map(probabilities, both(student, teacher))
    return np.mean(t * np.log((t + 1e-7) / (s + 1e-7)))


def cc(student, teacher, batch, loss):
    def kernel(x, y, g=0.4):
        return sum(math.exp(-2 * g) * (2 * g) ** p / math.factorial(p) * (x @ y) ** p for p in (0, 1, 2))

    s, t = (rows_of_length_one(x) for x in both(student, teacher))
    places = list(np.ndindex(len(s), len(s)))
    return sum((kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i, j in places) / len(places)


def cc_code(student, teacher, batch, loss):
    s, t = both(student, teacher)
    apart = np.abs(linear(loss.adapter, s) - linear(loss.teacher_adapter, t))
    return np.mean([np.sum(here * beyond) for here, beyond in pairwise(apart)])


def irg(student, teacher, batch, loss):
    def edges(x):
        squares = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
        return squares / squares.max()

    s, t = map(edges, both(student, teacher))
    return np.mean((s - t) ** 2)


def gkd(student, teacher, batch, loss):
    def graph(x):
        x = x.reshape(len(x), -1)
        similar = np.maximum(rows_of_length_one(x) @ rows_of_length_one(x).T, 0)
        np.fill_diagonal(similar, 0)
        degrees = similar.sum(axis=1)
        return similar / np.sqrt(np.outer(degrees, degrees))

    def neighbours(graph, k):
        near = np.array([[value >= np.sort(row)[-k] and value > 0 for value in row] for row in graph])
        return near | near.T

    def apart(x, adapter, t):
        x, t = (one.reshape(len(one), -1) for one in (x, t))
        return np.mean(np.sum((rows_of_length_one(linear(adapter, x)) - rows_of_length_one(t)) ** 2, axis=1))

    layers = [both(student, teacher, stage) for stage in ("stage1", "stage2", "stage3")]
    graphs, config = [tuple(map(graph, pair)) for pair in layers], loss.config
    seen = [neighbours(t, config.neighbours) if config.neighbours else 1 for _, t in graphs]
    edges = np.mean([np.mean(near * (s - t) ** 2) for (s, t), near in zip(graphs, seen, strict=True)])
    nodes = [apart(s, adapter, t) for (s, t), adapter in zip(layers, loss.adapters, strict=False)]
    changes = [np.mean((s2 - s1 - t2 + t1) ** 2) for (s1, t1), (s2, t2) in pairwise(graphs)]
    return (
        config.edges * edges
        + (np.mean(nodes) if nodes else 0) * config.nodes
        + config.change * np.mean(changes)
    )


def itrd(student, teacher, batch, loss):
    def z(x):
        return (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)

    def kernel(x):
        return rows_of_length_one(x) @ rows_of_length_one(x).T

    s, t = both(student, teacher)
    s = linear(loss.adapter, s)
    missing = np.abs(np.mean(z(s) * z(t), axis=0) - 1)
    g, together = kernel(s), kernel(s) * kernel(t)
    mutual = np.sum((g / np.trace(g)) ** 2) - np.sum((together / np.trace(together)) ** 2)
    return 2 * np.log2(np.sum(missing**2.02)) + mutual


def crd(student, teacher, batch, loss):
    torch.manual_seed(0)
    compared = loss.compared(batch)
    negatives, eps = 16384, 1e-7
    noise = negatives / SAMPLES

    def contrast(embedded, memory):
        p = np.array([np.exp(memory[rows] @ x / 0.07) for rows, x in zip(compared, embedded, strict=True)])
        p /= p.mean() * SAMPLES
        of_the_data, of_the_noise = p[:, 0] / (p[:, 0] + noise + eps), noise / (p[:, 1:] + noise + eps)
        return -np.mean(np.log(of_the_data) + np.log(of_the_noise).sum(axis=1))

    s, t = both(student, teacher)
    s = rows_of_length_one(linear(loss.adapter.linear, s))
    t = rows_of_length_one(linear(loss.teacher_adapter.linear, t))
    return contrast(s, array(loss.teacher_memory)) + contrast(t, array(loss.student_memory))


def srrl(student, teacher, batch, loss):
    s, t = both(student, teacher, "stage3")
    convolution, norm, _ = loss.adapter
    s = np.maximum(normalised(norm, at_each_place(array(convolution.weight), s)), 0)
    apart = s.mean(axis=(2, 3)) - t.mean(axis=(2, 3))
    return np.mean(apart**2) + np.mean((apart @ array(teacher_state(TEACHER)["head.weight"]).T) ** 2)


def simkd(student, teacher, batch, loss):
    x, t = both(student, teacher, "stage3")
    for convolution, norm in zip(loss.projector[0::3], loss.projector[1::3], strict=True):
        weight = convolution.weight.detach().double()
        x = F.conv2d(torch.from_numpy(x), weight, padding=weight.shape[-1] // 2).numpy()
        x = np.maximum(normalised(norm, x), 0)
    return np.mean((x - t) ** 2)


def cat_kd(student, teacher, batch, loss):
    s, t = (rows_of_length_one(maps.reshape(-1, 4)) for maps in both(student, teacher, CLASS_MAPS))
    return np.mean((s - t) ** 2)


def srd(student, teacher, batch, loss):
    s, t = both(student, teacher)
    apart = standardised(linear(loss.adapter, s), 1e-4) - standardised(t, 1e-4)
    return np.log(np.sum(apart**4))


def nd(student, teacher, batch, loss):
    seen = [
        (int(label), vector)
        for known, said in survey(TEACHER)
        for label, vector in zip(known.labels, array(said.features["embedding"]), strict=True)
    ]
    centres = [np.mean([vector for label, vector in seen if label == c], axis=0) for c in range(CLASSES)]
    s, t = both(student, teacher)
    s, directions = linear(loss.adapter, s), rows_of_length_one(centres)
    return np.mean(
        [
            1 - ours @ directions[label] / max(np.linalg.norm(ours), np.linalg.norm(theirs))
            for ours, theirs, label in zip(s, t, batch.labels, strict=True)
        ]
    )


def pad(student, teacher, batch, loss):
    s, t = both(student, teacher)
    log_variance = normalised(loss.estimator[1], linear(loss.estimator[0], s))
    return np.mean((t - linear(loss.adapter, s)) ** 2 / (1e-6 + np.exp(log_variance)) + log_variance)


def absolute(student, teacher, batch, loss):
    s, t = both(student, teacher)
    s, t = rows_of_length_one(linear(loss.adapter, s)), rows_of_length_one(t)
    return np.mean([np.linalg.norm(ours - theirs) for ours, theirs in zip(s, t, strict=True)])


def _apart(x):
    return np.array([[np.linalg.norm(a - b) for b in x] for a in x])


def relative(student, teacher, batch, loss):
    s, t = (_apart(rows_of_length_one(x)) for x in both(student, teacher))
    return np.mean([abs(s[i, j] - t[i, j]) for i, j in np.ndindex(s.shape) if i != j])


def relative_code(student, teacher, batch, loss):
    s, t = (_apart(rows_of_length_one(x)) for x in both(student, teacher))
    return np.sqrt(np.sum((s - t) ** 2))


def triplet(student, teacher, batch, loss):
    apart, labels, found = _apart(rows_of_length_one(both(student, student)[0])), batch.labels.tolist(), []
    for i, label in enumerate(labels):
        alike = [apart[i, j] for j, other in enumerate(labels) if other == label and j != i]
        others = [apart[i, j] for j, other in enumerate(labels) if other != label]
        if alike and others:
            found.append(max(0, 0.2 + max(alike) - min(others)))
    return np.mean(found)


CLOSED_FORM = {
    "absolute": absolute,
    "relative": relative,
    "triplet": triplet,
    "sp": sp,
    "rkd": rkd,
    "pkt": pkt,
    "cc": cc,
    "irg": irg,
    "gkd": gkd,
    "itrd": itrd,
    "crd": crd,
    "srrl": srrl,
    "simkd": simkd,
    "cat-kd": cat_kd,
    "srd": srd,
    "nd": nd,
    "pad": pad,
}
VARIANT_FORM = {"cc-code": cc_code, "relative-code": relative_code}
