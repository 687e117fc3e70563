"""Models whose examples never see each other, each with a named last layer and last hidden activation."""

# Importing a file fills the registry; this is the order of `names()`, from simple to large.
# isort: off
from noisesam.models import dense as _dense
from noisesam.models import convolutional as _convolutional
from noisesam.models import resnet as _resnet
from noisesam.models import vision_transformer as _vision_transformer

# isort: on
from noisesam.models.classifier import Classifier
from noisesam.models.initialisation import initialise
from noisesam.models.options import ChannelLayerNorm
from noisesam.models.registry import ModelDescription, describe, make, names, register, unregister

del _dense, _convolutional, _resnet, _vision_transformer

__all__ = [
    "ChannelLayerNorm",
    "Classifier",
    "ModelDescription",
    "describe",
    "initialise",
    "make",
    "names",
    "register",
    "unregister",
]
