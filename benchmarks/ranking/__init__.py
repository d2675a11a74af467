"""PairRM's ranking against a loop over single pairs: time on the same pairs in one run, equal logits."""
