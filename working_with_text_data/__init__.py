"""Floor 2, chapter 1: text to ids. Corpora give documents, the tokenizer gives ids, shards keep them for training."""
