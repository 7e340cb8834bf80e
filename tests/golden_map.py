"""Which terms a golden case is about: its loss and hyperparameters → terms, and the arrays that they read.

Where a term says nothing, ``student_logits``/``teacher_logits`` are the logits, every array that starts with
``student_features``/``teacher_features`` is a stage of that name, in the order of the case, and the last of them the
embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Term:
    """A term as in YAML, and where a case holds what it needs.

    ``student_logits`` names the array; ``views`` further views, by the ending of their logits' names. ``modules`` are
    the case's learnable modules → the loss's. ``drawn`` are methods of the loss that draw or estimate something → the
    array that the case gives for it. ``buffers`` are the loss's → an array or a number; ``after`` those that the case
    has after the step. ``teachers`` counts several. ``epoch`` is counted from 1; ``pretrain`` is a stage that trains
    adapters only.
    """

    config: dict[str, Any]
    student_logits: str = "student_logits"
    teacher_logits: str = "teacher_logits"
    views: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    teachers: int = 0
    epoch: int = 1
    pretrain: bool = False


def _count(inputs: list[str], start: str) -> int:
    return sum(name.startswith(start) for name in inputs)


def _stages(inputs: list[str], start: str = "student_features") -> list[list[str]]:
    students = [name for name in inputs if name.startswith(start)]
    return [[name, name.replace("student", "teacher")] for name in students]


def _dkd(h: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "dkd", "alpha": h["alpha"], "beta": h["beta"], "temperature": h["T"]}


def _hard_label(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    head = "student_logits_dist" if "student_logits_dist" in inputs else "student_logits"
    return [
        Term({"kind": "ce", "weight": 1 - h["alpha"]}),
        Term({"kind": "hard", "weight": h["alpha"]}, student_logits=head),
    ]


def _dkd_perhaps_warmed_up(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    if "warmup" not in h:
        return [Term(_dkd(h))]
    schedule = {"kind": "warmup", "epochs": h["warmup"]}
    ce = Term({"kind": "ce", "weight": h["ce_weight"]})
    return [ce, Term(_dkd(h) | {"schedule": schedule}, epoch=h["epoch"])]


def _mlkd(h: dict[str, Any], standardized: bool) -> list[Term]:
    config = {
        "kind": "mlkd",
        "weight": h["kd_weight"],
        "temperatures": [h["T"], *h["temperatures_fixed"]],
        "strong_temperatures": [h["T"], 3, 5],
        "unmasked_temperatures": [2, 6],
        "view": "strong",
        "logit_standardization": standardized,
    }
    names = {"student_logits": "student_logits_weak", "teacher_logits": "teacher_logits_weak"}
    return [Term(config, **names, views={"strong": "strong"})]


def _mlkd_part(h: dict[str, Any], part: str) -> list[Term]:
    weights = {f"{name}_weight": float(name == part) for name in ("instance", "batch", "class")}
    return [
        Term(
            {"kind": "mlkd", "confidence": "none", "temperatures": [h["T"]]}
            | {"strong_temperatures": [], "unmasked_temperatures": []}
            | weights
        )
    ]


def _ofd(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    modules = {}
    for i in range(_count(inputs, "student_features")):
        modules |= {f"connectors.{i}": f"adapters.{i}"}
    return [Term({"kind": "ofd"}, modules=modules)]


def _reviewkd(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    levels = _count(inputs, "student_features")
    modules = {
        f"abfs.{i}.{conv}": f"fusions.{i}.{conv}" for i in range(levels) for conv in ("conv1", "conv2")
    }
    modules |= {f"abfs.{i}.att_conv": f"fusions.{i}.attention" for i in range(1, levels)}
    schedule = {"kind": "warmup", "epochs": h["warmup_epochs"]}
    config = {"kind": "reviewkd", "weight": h["weight"], "schedule": schedule, "layers": _stages(inputs)}
    return [Term(config, modules=modules, epoch=h["epoch"])]


def _semckd(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    ours, theirs = _count(inputs, "student_features"), _count(inputs, "teacher_features")
    modules = {f"self_attention.query_weight{i}": f"queries.{i}" for i in range(ours)}
    modules |= {f"self_attention.key_weight{j}": f"keys.{j}" for j in range(theirs)}
    modules |= {
        f"self_attention.regressor{i}{j}.regressor": f"regressors.{i}.{j}"
        for i in range(ours)
        for j in range(theirs)
    }
    return [Term({"kind": "semckd", "factor": h["factor"]}, modules=modules)]


def _mgd(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    mask_of = {"channel": "channels", "spatial": "positions"}[h["mask_kind"]]
    config = {"kind": "mgd", "weight": h["alpha_mgd"], "masked": h["lambda_mgd"], "mask_of": mask_of}
    modules = {"mgd.generation": "generator", "mgd.align": "adapter.0"}
    return [Term(config, modules=modules, drawn={"kept": "mask"})]


def _cc(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    modules = {"embed_s.linear": "adapter", "embed_t.linear": "teacher_adapter"}
    return [Term({"kind": "cc", "mode": "code", "width": h["feat_dim"]}, modules=modules)]


def _crd(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    config = {
        "kind": "crd",
        "width": h["feat_dim"],
        "negatives": h["nce_k"],
        "temperature": h["nce_t"],
        "momentum": h["nce_m"],
    }
    return [
        Term(
            config,
            modules={"embed_s": "adapter", "embed_t": "teacher_adapter"},
            drawn={"compared": "contrast_idx"},
            buffers={"student_memory": "memory_v1", "teacher_memory": "memory_v2"}
            | {
                name: h[key]
                for name, key in (("student_normaliser", "Z_v1"), ("teacher_normaliser", "Z_v2"))
                if key in h
            },
            after={"student_memory": "aux__memory_v1_after", "teacher_memory": "aux__memory_v2_after"},
        )
    ]


def _irg(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    pairs = _stages(inputs, "transform_student_features")
    config = {
        "kind": "irg",
        "graph": h["w_graph"],
        "transform": h["w_transform"],
        "edge_transform": not h["no_edge_transform"],
        "changes": [pairs[i : i + 2] for i in range(0, len(pairs), 2)],
        "student_layer": "student_features",
        "teacher_layer": "teacher_features",
    }
    return [Term(config)]


def _several(
    config: dict[str, Any], inputs: list[str], start: str = "teacher_logits", **more: Any
) -> list[Term]:
    return [Term(config, teachers=_count(inputs, start), **more)]


def _camkd_feature(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    modules = {f"cal_weight.embed{i}.transfer": f"projections.{i}" for i in range(h["teachers"])}
    modules |= {f"teacher_classifier_{i}": f"classifiers.{i}" for i in range(h["teachers"])}
    return _several({"kind": "ca-mkd-feature"}, inputs, "teacher_features", modules=modules)


FT = {"paraphraser.conv": "paraphraser.encoder", "paraphraser.deconv": "paraphraser.decoder"}
FT_MODULES = {f"{theirs}{i}": f"{ours}.{i}.0" for theirs, ours in FT.items() for i in range(3)}
FT_MODULES |= {f"translator.conv{i}": f"adapter.{i}.0" for i in range(3)}
CLASSIFIER = {"teacher_classifier": "classifier"}


TERMS = {
    # labels
    "label_smoothing": lambda h, _: [Term({"kind": "ce", "label_smoothing": h["epsilon"]})],
    "label_smoothing_tfkd": lambda h, _: [
        Term({"kind": "ce", "label_smoothing": h["alpha"], "smoothing_over": "others"})
    ],
    "tfkd_reg": lambda h, _: [
        Term({"kind": "ce", "weight": 1 - h["alpha"]}),
        Term(
            {"kind": "tf-kd-reg", "weight": h["alpha"] * h["multiplier"]}
            | {"temperature": h["T"], "correct": h["correct_prob"]}
        ),
    ],
    # logits
    "kd": lambda h, _: [Term({"kind": "kd", "temperature": h["T"]})],
    "hard_label": _hard_label,
    "deit_soft": lambda h, _: [
        Term({"kind": "ce", "weight": 1 - h["alpha"]}),
        Term({"kind": "kd", "weight": h["alpha"], "temperature": h["T"], "reduction": "mean"}),
    ],
    "tfkd_self": lambda h, _: [
        Term({"kind": "ce", "weight": 1 - h["alpha"]}),
        Term(
            {"kind": "kd", "weight": h["alpha"] * h["multiplier"], "temperature": h["T"], "reduction": "mean"}
        ),
    ],
    "logit_mse": lambda h, _: [Term({"kind": "logit-mse"})],
    "dkd": _dkd_perhaps_warmed_up,
    "nkd": lambda h, _: [Term({"kind": "nkd", "gamma": h["gamma"], "temperature": h["T"]})],
    "wsld": lambda h, _: [
        Term({"kind": "ce"}),
        Term({"kind": "wsld", "weight": h["alpha"], "temperature": h["T"]}),
    ],
    "dist": lambda h, _: [
        Term({"kind": "dist", "beta": h["beta"], "gamma": h["gamma"], "temperature": h["tau"]})
    ],
    "lskd": lambda h, _: [Term({"kind": "kd", "temperature": h["T"], "logit_standardization": True})],
    "lskd_dkd": lambda h, _: [Term(_dkd(h) | {"logit_standardization": True})],
    "mlkd": lambda h, _: _mlkd(h, standardized=False),
    "lskd_mlkd": lambda h, _: _mlkd(h, standardized=True),
    "mlkd_batch": lambda h, _: _mlkd_part(h, "batch"),
    "mlkd_class": lambda h, _: _mlkd_part(h, "class"),
    "rld": lambda h, _: [
        Term(_dkd(h) | {"kind": "rld", "alpha_temperature": h["alpha_T"]}),
    ],
    "ttm": lambda h, _: [Term({"kind": "ttm", "gamma": h["gamma"]})],
    "wttm": lambda h, _: [Term({"kind": "wttm", "gamma": h["gamma"]})],
    "binary_kd": lambda h, _: [Term({"kind": "binary-kd"})],
    # features
    "fitnet": lambda h, _: [
        Term(
            {"kind": "hint", "adapter": "regressor", "relu": h["use_relu"]}, modules={"conv_reg": "regressor"}
        )
    ],
    "hint_mse": lambda h, _: [Term({"kind": "hint", "adapter": "none"})],
    "at": lambda h, inputs: [Term({"kind": "at", "p": h["p"], "layers": _stages(inputs)})],
    "at_paper": lambda h, inputs: [
        Term({"kind": "at", "p": h["p"], "mode": "paper", "layers": _stages(inputs)})
    ],
    "fsp": lambda h, inputs: [Term({"kind": "fsp", "layers": _stages(inputs)})],
    "nst": lambda h, inputs: [Term({"kind": "nst", "layers": _stages(inputs)})],
    "ft": lambda h, _: [Term({"kind": "ft", "planes": h["k_planes"]}, modules=FT_MODULES)],
    "ft_repdistiller": lambda h, _: [Term({"kind": "ft", "adapter": "none", "form": "attention"})],
    "ft_paraphraser": lambda h, _: [
        Term({"kind": "ft", "planes": h["k_planes"]}, modules=FT_MODULES, pretrain=True)
    ],
    "ab": lambda h, inputs: [Term({"kind": "ab", "margin": h["margin"], "layers": _stages(inputs)})],
    "ofd": _ofd,
    "vid": lambda h, _: [
        Term(
            {"kind": "vid", "variance": h["init_pred_var"], "middle": h["mid_channels"]},
            modules={"vid": "adapters.0"},
        )
    ],
    "reviewkd": _reviewkd,
    "reviewkd_hcl": lambda h, inputs: [
        Term({"kind": "reviewkd", "fusion": False, "layers": _stages(inputs)})
    ],
    "semckd": _semckd,
    "simkd": lambda h, _: [
        Term({"kind": "simkd", "factor": h["factor"]}, modules={"simkd.transfer": "projector"} | CLASSIFIER)
    ],
    "srrl": lambda h, _: [
        Term(
            {"kind": "srrl", "classifier_weight": h["weight"]},
            modules={"connector.Connectors": "adapter"} | CLASSIFIER,
        )
    ],
    "mgd": _mgd,
    "cwd": lambda h, _: [Term({"kind": "cwd", "temperature": h["T"]})],
    "pkd": lambda h, _: [Term({"kind": "pkd"})],
    "ickd": lambda h, _: [
        Term({"kind": "ickd"}, modules={"embed_s.conv2d": "adapter.0", "embed_s.l2norm": "adapter.1"})
    ],
    "nd": lambda h, _: [Term({"kind": "nd", "weight": h["factor"]})],
    "pad_l2": lambda h, _: [Term({"kind": "pad"}, drawn={"log_variances": "log_variances"})],
    "srd": lambda h, _: [
        Term({"kind": "srd", "weight": h["weight"], "exponent": h["exponent"]}, modules={"embed": "adapter"})
    ],
    # relations
    "sp": lambda h, _: [Term({"kind": "sp"})],
    "rkd": lambda h, _: [Term({"kind": "rkd", "distance": h["w_d"], "angle": h["w_a"]})],
    "rkd_distance": lambda h, _: [Term({"kind": "rkd", "distance": 1, "angle": 0})],
    "rkd_angle": lambda h, _: [Term({"kind": "rkd", "distance": 0, "angle": 1})],
    "pkt": lambda h, _: [Term({"kind": "pkt"})],
    "cc": _cc,
    "cc_kernel": lambda h, _: [Term({"kind": "cc", "gamma": h["gamma"], "order": h["P_order"]})],
    "crd": _crd,
    "irg": _irg,
    "itrd_correlation": lambda h, _: [
        Term(
            {"kind": "itrd", "correlation": 1, "mutual": 0, "alpha": h["alpha_it"]},
            modules={"embed.linear": "adapter"},
        )
    ],
    "itrd_mutual": lambda h, _: [
        Term({"kind": "itrd", "correlation": 0, "mutual": 1}, modules={"embed.linear": "adapter"})
    ],
    # several teachers
    "mt_avg_loss": lambda h, inputs: _several(
        {"kind": "kd", "temperature": h["T"], "combine": "mean-loss"}, inputs
    ),
    "mt_avg_softmax": lambda h, inputs: _several({"kind": "kd", "temperature": h["T"]}, inputs),
    "ebkd": lambda h, inputs: _several({"kind": "ebkd", "temperature": h["T"]}, inputs),
    "camkd_logit": lambda h, inputs: _several({"kind": "ca-mkd", "temperature": h["T"]}, inputs),
    "camkd_feature": _camkd_feature,
    "aekd": lambda h, inputs: _several({"kind": "aekd", "temperature": h["T"], "cap": h["C"]}, inputs),
}

FIXED = {
    "ft_repdistiller": {"p1": 2, "p2": 1},
    "vid": {"eps": 1e-5},
    "pkt": {"eps": 1e-7},
    "pad_l2": {"eps": 1e-6},
    "srd": {"bn_eps": 1e-4},
}
"""Hyperparameters that are no options: the loss has these values."""

DESCRIBING = {"in_channels", "out_channels", "shapes", "out_shapes", "num_class", "n_data", "nu", "ce_weight"}
"""Hyperparameters that describe the arrays, follow from others, or belong to terms that the case leaves out."""
