"""Floor 4, chapter 4: learning. Corpora become shards, a loop makes a model of them."""
