"""The miniature study: the paper's claims on small real models, and the page docs/study.md."""
