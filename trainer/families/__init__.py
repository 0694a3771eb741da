"""The architectures that we ship, one file each; importing this package registers them."""

from trainer.families.mobilenetv2 import MobileNetV2
from trainer.families.named import Bert, DistilBert, Llama, RoBERTa, ViT
from trainer.families.resnet import ResNet
from trainer.families.transformers import Transformers
from trainer.family import register_family

register_family("resnet", ResNet)
register_family("mobilenetv2", MobileNetV2)
register_family("transformers", Transformers)
register_family("bert", Bert)
register_family("roberta", RoBERTa)
register_family("distilbert", DistilBert)
register_family("vit", ViT)
register_family("llama", Llama)

__all__ = ["Bert", "DistilBert", "Llama", "MobileNetV2", "ResNet", "RoBERTa", "Transformers", "ViT"]
