"""Byte-level byte-pair encoding: `BytePairTokenizer` trains, encodes, decodes, saves and loads."""

from working_with_text_data.bytepair_enc.bpe import GPT2_PATTERN, GPT4_PATTERN, BytePairTokenizer

__all__ = ["GPT2_PATTERN", "GPT4_PATTERN", "BytePairTokenizer"]
