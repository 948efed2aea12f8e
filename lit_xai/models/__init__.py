"""The classifier module and the networks it trains."""

from lit_xai.models.classifier import Classifier
from lit_xai.models.hf_models import HuggingFace
from lit_xai.models.lipschitz import lipschitz
from lit_xai.models.outputs import AsLogits
from lit_xai.models.pretrained import Pretrained
from lit_xai.models.resnet import resnet18, resnet50
from lit_xai.models.timm_models import Timm
from lit_xai.models.vgg import one_layer, vgg

__all__ = [
    "AsLogits",
    "Classifier",
    "HuggingFace",
    "Pretrained",
    "Timm",
    "lipschitz",
    "one_layer",
    "resnet18",
    "resnet50",
    "vgg",
]
