"""The architectures that we ship, one file each; importing this package registers them."""

from trainer.families.mobilenetv2 import MobileNetV2
from trainer.families.resnet import ResNet
from trainer.family import register_family

register_family("resnet", ResNet)
register_family("mobilenetv2", MobileNetV2)

__all__ = ["MobileNetV2", "ResNet"]
