"""Byte-level byte-pair encoding: `BytePairTokenizer` trains, encodes, decodes, saves and loads."""

from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN
from working_with_text_data.bytepair_enc.streaming import StreamDecoder, encode_file, encode_stream

__all__ = [
    "GPT2_PATTERN",
    "GPT4O_PATTERN",
    "GPT4_PATTERN",
    "BytePairTokenizer",
    "StreamDecoder",
    "encode_file",
    "encode_stream",
]
