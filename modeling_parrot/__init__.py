"""Parrot for transformers: importing this package registers its classes with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from configuration_parrot import ParrotConfig
from modeling_parrot.modeling_parrot import ParrotForConditionalGeneration, ParrotModel, ParrotPreTrainedModel
from processing_parrot import ParrotProcessor


AutoConfig.register("parrot", ParrotConfig)
AutoModel.register(ParrotConfig, ParrotModel)
AutoModelForCausalLM.register(ParrotConfig, ParrotForConditionalGeneration)
AutoModelForImageTextToText.register(ParrotConfig, ParrotForConditionalGeneration)
AutoProcessor.register(ParrotConfig, ParrotProcessor)

__version__ = "0.1.0"
__all__ = ["ParrotConfig", "ParrotForConditionalGeneration", "ParrotModel", "ParrotPreTrainedModel", "ParrotProcessor"]
