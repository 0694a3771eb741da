"""The architectures that we ship, one file each; importing this package registers them."""

from trainer.families.mobilenetv2 import MobileNetV2
from trainer.families.resnet import ResNet
from trainer.families.transformers import Bert, DistilBert, RoBERTa, Transformers, ViT
from trainer.family import register_family

register_family("resnet", ResNet)
register_family("mobilenetv2", MobileNetV2)
register_family("transformers", Transformers)
register_family("bert", Bert)
register_family("roberta", RoBERTa)
register_family("distilbert", DistilBert)
register_family("vit", ViT)

__all__ = ["Bert", "DistilBert", "MobileNetV2", "ResNet", "RoBERTa", "Transformers", "ViT"]
