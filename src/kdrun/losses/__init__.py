"""The losses, by family; importing this package registers them."""

from kdrun.losses.across import KnowledgeReview, SemanticCalibration
from kdrun.losses.activations import ActivationBoundaries, FactorTransfer, Overhaul
from kdrun.losses.attention import SelfAttentionRelations
from kdrun.losses.distances import AbsoluteTeacher, RelativeTeacher, Triplet
from kdrun.losses.embeddings import (
    ClassAttention,
    NormAndDirection,
    PrimeAware,
    SimKD,
    SimpleRecipe,
    SoftmaxRegression,
)
from kdrun.losses.features import (
    AttentionTransfer,
    ChannelWise,
    Hint,
    InterChannel,
    MaskedGeneration,
    NeuronSelectivity,
    PearsonCorrelation,
    SolutionFlow,
    VariationalInformation,
)
from kdrun.losses.graphs import GraphKD
from kdrun.losses.labels import CrossEntropy, VirtualTeacher
from kdrun.losses.logits import (
    BinaryKD,
    CorrelationKD,
    CurriculumTemperature,
    DecoupledKD,
    HardTargets,
    LogitMSE,
    MultiLevelKD,
    NormalizedKD,
    RefinedLogits,
    SoftTargets,
    TransformedTeacher,
    WeightedSoftLabels,
)
from kdrun.losses.peers import CollaborativeLearning, MutualLearning
from kdrun.losses.policies import PolicyKL, Viper
from kdrun.losses.relations import (
    ContrastiveKD,
    CorrelationCongruence,
    InformationTheoretic,
    ProbabilisticTransfer,
    RelationalKD,
    RelationGraph,
    SimilarityPreserving,
)
from kdrun.losses.rewards import ProximalPolicy
from kdrun.losses.selves import Exits, MeanTeacher, PastSelf
from kdrun.losses.several import AdaptiveEnsemble, ConfidenceAware, ConfidenceAwareFeatures, EntropyWeighted
from kdrun.losses.structure import SplitBalance
from kdrun.losses.wasserstein import WassersteinFeatures, WassersteinLogits

__all__ = [
    "AbsoluteTeacher",
    "ActivationBoundaries",
    "AdaptiveEnsemble",
    "AttentionTransfer",
    "BinaryKD",
    "ChannelWise",
    "ClassAttention",
    "CollaborativeLearning",
    "ConfidenceAware",
    "ConfidenceAwareFeatures",
    "ContrastiveKD",
    "CorrelationCongruence",
    "CorrelationKD",
    "CrossEntropy",
    "CurriculumTemperature",
    "DecoupledKD",
    "EntropyWeighted",
    "Exits",
    "FactorTransfer",
    "GraphKD",
    "HardTargets",
    "Hint",
    "InformationTheoretic",
    "InterChannel",
    "KnowledgeReview",
    "LogitMSE",
    "MaskedGeneration",
    "MeanTeacher",
    "MultiLevelKD",
    "MutualLearning",
    "NeuronSelectivity",
    "NormAndDirection",
    "NormalizedKD",
    "Overhaul",
    "PastSelf",
    "PearsonCorrelation",
    "PolicyKL",
    "PrimeAware",
    "ProbabilisticTransfer",
    "ProximalPolicy",
    "RefinedLogits",
    "RelationGraph",
    "RelationalKD",
    "RelativeTeacher",
    "SelfAttentionRelations",
    "SemanticCalibration",
    "SimKD",
    "SimilarityPreserving",
    "SimpleRecipe",
    "SoftTargets",
    "SoftmaxRegression",
    "SolutionFlow",
    "SplitBalance",
    "TransformedTeacher",
    "Triplet",
    "VariationalInformation",
    "Viper",
    "VirtualTeacher",
    "WassersteinFeatures",
    "WassersteinLogits",
    "WeightedSoftLabels",
]
