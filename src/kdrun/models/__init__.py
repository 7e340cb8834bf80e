"""The models, by family; importing this package registers them."""

from kdrun.models.agents import DQN, PPO, Policy
from kdrun.models.compressed import Compressed, CompressedConfig, Int8, Pruned
from kdrun.models.external import Timm, Torchvision
from kdrun.models.fitted import SVC, Fitted, LogisticRegression
from kdrun.models.graph import APPNP
from kdrun.models.heads import Heads, heads_for
from kdrun.models.lens import AnyNormalization, Lens, Normalization, lens_for
from kdrun.models.mobile import MobileNetV2, ShuffleNetV1, ShuffleNetV2
from kdrun.models.network import Deployed, Frozen, Network, build, macs, parameters, zeros
from kdrun.models.prepared import Prepared, Recipe, recipe
from kdrun.models.resnet import ResNet, WideResNet
from kdrun.models.simple import CNN, GRU, MLP, ViT
from kdrun.models.soft_tree import SoftTree
from kdrun.models.together import Cascade, Combined, CombinedConfig, Ensemble, Specialists
from kdrun.models.trees import Boosting, Forest, Tree
from kdrun.models.vgg import VGG
from kdrun.models.weights import load_weights, read_state

__all__ = [
    "APPNP",
    "CNN",
    "DQN",
    "GRU",
    "MLP",
    "PPO",
    "SVC",
    "VGG",
    "AnyNormalization",
    "Boosting",
    "Cascade",
    "Combined",
    "CombinedConfig",
    "Compressed",
    "CompressedConfig",
    "Deployed",
    "Ensemble",
    "Fitted",
    "Forest",
    "Frozen",
    "Heads",
    "Int8",
    "Lens",
    "LogisticRegression",
    "MobileNetV2",
    "Network",
    "Normalization",
    "Policy",
    "Prepared",
    "Pruned",
    "Recipe",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "SoftTree",
    "Specialists",
    "Timm",
    "Torchvision",
    "Tree",
    "ViT",
    "WideResNet",
    "build",
    "heads_for",
    "lens_for",
    "load_weights",
    "macs",
    "parameters",
    "read_state",
    "recipe",
    "zeros",
]
