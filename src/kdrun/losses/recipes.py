"""What several published mixes have in common."""

CRD = "Tian, Krishnan, Isola, Contrastive Representation Distillation, 2020"
"""Whose weights for CIFAR-100 most tables are made with."""
WARM_UP = {"kind": "warmup", "share": 0.0833}
"""20 of 240 epochs."""
LATE = {"kind": "cosine", "start": 0.625}
"""Falling after epoch 150 of 240."""
FIRST = 0.1111
"""The share of a first stage: 30 epochs before 240 others."""
