"""Training data of Parrot: sources, conversations, images, and the collator for the Trainer."""

from parrot_data.collator import ParrotDataCollator
from parrot_data.conversations import to_row
from parrot_data.images import BadImageError, ImageReader, load_image
from parrot_data.lengths import rows_that_do_not_fit
from parrot_data.mixtures import ConversationDataset, Mixture, open_sources
from parrot_data.sources import DataSource


__all__ = [
    "BadImageError",
    "ConversationDataset",
    "DataSource",
    "ImageReader",
    "Mixture",
    "ParrotDataCollator",
    "load_image",
    "open_sources",
    "rows_that_do_not_fit",
    "to_row",
]
