"""Closed forms, in numpy, of the losses on labels, on logits, on several teachers and of Wasserstein distances."""

import numpy as np

from given import TEACHER, survey, teacher_state


def array(x):
    return x.detach().double().numpy()


def logits(said):
    return array(said.logits)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q))


def cross_entropies(z, classes):
    return np.array([-np.log(softmax(row)[c]) for row, c in zip(z, classes, strict=True)])


def samples(student, teacher, batch):
    """Each sample's logits, the student's and the teacher's, and its label."""
    return list(zip(logits(student), logits(teacher), batch.labels.tolist(), strict=True))


def bins(probability):
    return np.array([probability, 1 - probability])


def convolved(x, convolution, norm):
    """ReLU(BN(1×1 convolution)) of maps."""
    weight, bias, scale, shift = (
        array(p) for p in (convolution.weight, convolution.bias, norm.weight, norm.bias)
    )
    x = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x) + bias[:, None, None]
    x = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    return np.maximum(scale[:, None, None] * x + shift[:, None, None], 0)


# ----------------------------------------------------------------------------------------------------- labels


def ce(student, teacher, batch, loss):
    return np.mean(cross_entropies(logits(student), batch.labels))


def ps_kd(student, teacher, batch, loss):
    """In the first epoch, which has no past."""
    return ce(student, teacher, batch, loss)


def of_peers(student, batch, loss):
    """The logits of the student and of each of its peers."""
    return [logits(student), *(array(peer(batch.views["input"])) for peer in loss.peers)]


def mutual(student, teacher, batch, loss):
    ours, *theirs = of_peers(student, batch, loss)
    return np.mean(
        [kl(softmax(z), softmax(row)) for peer in theirs for z, row in zip(peer, ours, strict=True)]
    )


def kdcl(student, teacher, batch, loss):
    said = of_peers(student, batch, loss)
    total = 0
    for place, label in enumerate(batch.labels.tolist()):
        rows = [z[place] for z in said]
        together = np.min([row - row[label] for row in rows], axis=0)
        total += 4 * kl(softmax(together / 2), softmax(rows[0] / 2))
    return total / len(batch)


def mean_teacher(student, teacher, batch, loss):
    """Before the first step, when the average has the student's weights."""
    weight, bias = (array(loss.student_state()[name]) for name in ("weight", "bias"))
    theirs = softmax(array(batch.views["input"]) @ weight.T + bias)
    return np.mean((softmax(logits(student)) - theirs) ** 2)


def tf_kd_reg(student, teacher, batch, loss):
    z = logits(student)
    size, classes = z.shape
    total = 0
    for row, label in zip(z, batch.labels, strict=True):
        u = np.full(classes, 0.01 / (classes - 1))
        u[label] = 0.99
        total += kl(softmax(u / 20), softmax(row))
    return total / (size * classes)


# -------------------------------------------------------------------------------------------------------- kd


def kd_with(divergence):
    """16 times the mean over samples of what ``divergence`` makes of the probabilities at temperature 4."""

    def value(student, teacher, batch, loss):
        pairs = [(softmax(t / 4), softmax(s / 4)) for s, t, _ in samples(student, teacher, batch)]
        return 16 * np.mean([divergence(p, q) for p, q in pairs])

    return value


def js(p, q):
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def alpha_beta(alpha, beta):
    """The divergence of two exponents; next to 0 for 0."""
    a, b = max(alpha, 1e-6), max(beta, 1e-6)

    def divergence(p, q):
        mixed, both = p**a * q**b, a + b
        return -np.sum(mixed - a / both * p**both - b / both * q**both) / (a * b)

    return divergence


def alpha_beta_kd(alpha, beta):
    """The closed form of ``alpha-beta`` with these exponents, 0 among them."""
    return kd_with(alpha_beta(alpha, beta))


DIVERGENCE = {
    "forward-kl": kd_with(kl),
    "reverse-kl": kd_with(lambda p, q: kl(q, p)),
    "js": kd_with(js),
    "alpha-beta": alpha_beta_kd(0.8, 0.3),
    "mse": kd_with(lambda p, q: np.sum((p - q) ** 2)),
}
ALPHA_BETA_LIMITS = {(1, 0): "forward-kl", (0, 1): "reverse-kl"}
"""Exponents at which alpha-beta is another divergence."""


# ---------------------------------------------------------------------------------------------------- logits


def hard(student, teacher, batch, loss):
    return np.mean(cross_entropies(logits(student), logits(teacher).argmax(axis=1)))


def logit_mse(student, teacher, batch, loss):
    return np.mean((logits(student) - logits(teacher)) ** 2)


def dkd(student, teacher, batch, loss):
    total = 0
    for s, t, label in samples(student, teacher, batch):
        inside = kl(bins(softmax(t / 4)[label]), bins(softmax(s / 4)[label]))
        among = kl(softmax(np.delete(t, label) / 4), softmax(np.delete(s, label) / 4))
        total += inside + 8 * among
    return 16 * total / len(batch)


def nkd(student, teacher, batch, loss):
    total = 0
    for s, t, label in samples(student, teacher, batch):
        others = softmax(np.delete(t, label)) @ np.log(softmax(np.delete(s, label)))
        total -= softmax(t)[label] * np.log(softmax(s)[label]) + 1.5 * others
    return total / len(batch)


def dist(student, teacher, batch, loss):
    p, q = softmax(logits(teacher) / 4), softmax(logits(student) / 4)
    rows, columns = (
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*pair, strict=True)])
        for pair in ((p, q), (p.T, q.T))
    )
    return 16 * (1 - rows + 1 - columns)


def mlkd(student, teacher, batch, loss):
    surely = softmax(logits(teacher))
    size, classes = surely.shape
    top, held = surely.max(axis=1), surely.sum(axis=0)
    m, m_c = np.mean(top <= np.median(top)), np.mean(held <= np.median(held))

    def instance(temperatures):
        return sum(
            T**2 * kl(softmax(logits(teacher) / T), softmax(logits(student) / T)) / size for T in temperatures
        )

    between = within = 0
    for T in (2, 3, 4, 5, 6):
        p, q = softmax(logits(teacher) / T), softmax(logits(student) / T)
        between += sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i, j in np.ndindex(size, size))
        within += sum((p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2 for c, d in np.ndindex(classes, classes))
    kd = m * instance((2, 3, 4, 5, 6)) + instance((3, 4, 5)) + instance((2, 6))
    return kd + m * between / size + m_c * within / classes


def wsld(student, teacher, batch, loss):
    total = 0
    for s, t, label in samples(student, teacher, batch):
        weight = 1 - np.exp(np.log(softmax(s)[label]) / (1e-7 - np.log(softmax(t)[label])))
        total -= weight * softmax(t / 2) @ np.log(softmax(s / 2))
    return 4 * total / len(batch)


def transformed(student, teacher, batch):
    """For each sample how unsure the teacher is, and the divergence, of the teacher's probabilities to the 0.1."""
    found = []
    for s, t, _ in samples(student, teacher, batch):
        powers = softmax(t) ** 0.1
        found.append((powers.sum(), kl(powers / powers.sum(), softmax(s))))
    return found


def ttm(student, teacher, batch, loss):
    return np.mean([divergence for _, divergence in transformed(student, teacher, batch)])


def wttm(student, teacher, batch, loss):
    return np.mean([weight * divergence for weight, divergence in transformed(student, teacher, batch)])


def rld(student, teacher, batch, loss):
    total = 0
    for s, t, label in samples(student, teacher, batch):
        total += kl(bins(softmax(t).max()), bins(softmax(s)[label]))
        below = [c for c in range(len(t)) if t[c] < t[label]]
        if below:
            total += 8 * 16 * kl(softmax(t[below] / 4), softmax(s[below] / 4))
    return total / len(batch)


def ctkd(student, teacher, batch, loss):
    T = 1 + 20 / (1 + np.exp(-loss.theta.item()))
    pairs = [(softmax(t / T), softmax(s / T)) for s, t, _ in samples(student, teacher, batch)]
    return T**2 * np.mean([kl(p, q) for p, q in pairs])


def binary_kd(student, teacher, batch, loss):
    p, q = softmax(logits(teacher)), 1 / (1 + np.exp(-logits(student)))
    return -np.mean(p * np.log(q) + (1 - p) * np.log(1 - q))


# -------------------------------------------------------------------------------------------------- policies


def policy_kl(student, teacher, batch, loss):
    total = 0
    for s, t, _ in samples(student, teacher, batch):
        p, q = softmax(t / 0.01), softmax(s)
        total += sum(p[c] * np.log(p[c] / q[c]) for c in range(len(p)) if p[c] > 0)
    return total / len(batch)


def viper(student, teacher, batch, loss):
    q = logits(teacher)
    costs = [row.max() - row.min() for row in q]
    errors = cross_entropies(logits(student), q.argmax(axis=1))
    return sum(cost * error for cost, error in zip(costs, errors, strict=True)) / sum(costs)


# ------------------------------------------------------------------------------------------- several teachers


def softened(student, teachers):
    """16 KL at temperature 4 of each teacher (rows) and sample (columns)."""
    q = softmax(logits(student) / 4)
    return np.array(
        [[16 * kl(*pair) for pair in zip(softmax(logits(t) / 4), q, strict=True)] for t in teachers.values()]
    )


def confidence(errors):
    """(1 − softmax over teachers) / (M − 1), of one cross-entropy of each teacher and sample (M, B)."""
    return (1 - softmax(errors.T).T) / (len(errors) - 1)


def ebkd(student, teachers, batch, loss):
    p = np.array([softmax(logits(said)) for said in teachers.values()])
    entropies = -np.sum(p * np.log(p), axis=2)
    weights = 1 - entropies / entropies.sum(axis=0)
    return np.sum(weights * softened(student, teachers)) / weights.size


def ca_mkd(student, teachers, batch, loss):
    weights = confidence(np.array([cross_entropies(logits(t), batch.labels) for t in teachers.values()]))
    return np.sum(weights * softened(student, teachers)) / weights.size


def ca_mkd_feature(student, teachers, batch, loss):
    state = teacher_state(TEACHER)
    errors, distances = [], []
    for said, (convolution, norm, _) in zip(teachers.values(), loss.projections, strict=True):
        x = convolved(array(student.features["stage3"]), convolution, norm)
        z = x.mean(axis=(2, 3)) @ array(state["head.weight"]).T + array(state["head.bias"])
        errors.append(cross_entropies(z, batch.labels))
        distances.append(np.mean((x - array(said.features["stage3"])) ** 2, axis=(1, 2, 3)))
    weights = confidence(np.array(errors))
    return np.sum(weights * distances) / weights.size


def aekd(student, teachers, batch, loss):
    q = softmax(logits(student) / 4)
    first, second = (np.mean(q - softmax(logits(said) / 4), axis=0) for said in teachers.values())
    apart = second - first
    cap = loss.config.cap
    share = np.clip(second @ apart / (apart @ apart), 1 - cap, cap)
    a, b = softened(student, teachers).mean(axis=1)
    return share * a + (1 - share) * b


# ---------------------------------------------------------------------------------------------- Wasserstein


def alignment(x, y):
    """Linear centred kernel alignment of two sets of rows."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.sum((y.T @ x) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))


def wkd_logit(student, teacher, batch, loss):
    seen = [pair for part, said in survey(TEACHER) for pair in zip(part.labels, logits(said), strict=True)]
    rows = [np.array([z for label, z in seen if label == c]) for c in range(logits(teacher).shape[1])]
    costs = np.array([[1 - np.exp(alignment(x, y) - 1) for y in rows] for x in rows])
    total = 0
    for s, t, label in samples(student, teacher, batch):
        cost = np.delete(np.delete(costs, label, axis=0), label, axis=1)
        ours, theirs = softmax(np.delete(s, label) / 8), softmax(np.delete(t, label) / 8)
        kernel, u = np.exp(-cost / 0.05), np.full(len(cost), 1 / len(cost))
        for _ in range(10):
            v = theirs / (kernel.T @ u)
            u = ours / (kernel @ v)
        total += np.sum(np.diag(u) @ kernel @ np.diag(v) * cost)
    return total / len(batch)


def wkd_feature(student, teacher, batch, loss):
    def gaussians(x):
        return x.mean(axis=(2, 3)), np.sqrt(x.var(axis=(2, 3), ddof=1) + 1e-5)

    ours = convolved(array(student.features["stage3"]), loss.adapter.conv, loss.adapter.bn)
    (mean_s, std_s), (mean_t, std_t) = (gaussians(x) for x in (ours, array(teacher.features["stage3"])))
    return (4 * np.sum((mean_s - mean_t) ** 2) + np.sum((std_s - std_t) ** 2)) / len(batch)


def ppo(student, teacher, batch, loss):
    acted, p = batch.acted, softmax(logits(student))
    advantage = array(acted.advantage)
    advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
    ratio = p[range(len(p)), acted.action.numpy()] / np.exp(array(acted.log_probability))
    best = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    weight, bias = (array(part)[0] for part in (loss.critic.weight, loss.critic.bias))
    value = array(student.features["embedding"]) @ weight + bias
    return 0.5 * np.mean((value - array(acted.outcome)) ** 2) - np.mean(best)


CLOSED_FORM = {
    "ppo": ppo,
    "ce": ce,
    "ps-kd": ps_kd,
    "mutual": mutual,
    "kdcl": kdcl,
    "mean-teacher": mean_teacher,
    "tf-kd-reg": tf_kd_reg,
    "kd": DIVERGENCE["forward-kl"],
    "hard": hard,
    "logit-mse": logit_mse,
    "dkd": dkd,
    "nkd": nkd,
    "dist": dist,
    "mlkd": mlkd,
    "wsld": wsld,
    "ttm": ttm,
    "wttm": wttm,
    "rld": rld,
    "ctkd": ctkd,
    "binary-kd": binary_kd,
    "policy-kl": policy_kl,
    "viper": viper,
    "ebkd": ebkd,
    "ca-mkd": ca_mkd,
    "ca-mkd-feature": ca_mkd_feature,
    "aekd": aekd,
    "wkd-logit": wkd_logit,
    "wkd-feature": wkd_feature,
}
