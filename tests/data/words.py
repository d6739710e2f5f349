"""Small tokenizers of encoders: words of a short list in the way of BERT, and bytes in the way of RoBERTa."""

from __future__ import annotations

import copy

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "film", "is", "it", "was", "good", "bad", "great", "terrible", ".", "##ly", "un", "##wise", "[", "]"]
WORDS += ["mask", "a", "jo", "##hn", "lives", "in", "paris"]


def wordpiece() -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def bytes_of(tiny: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer of tiny with an encoder's special tokens, which it does not put there by itself."""
    tokenizer = copy.deepcopy(tiny)
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"})
    return tokenizer
