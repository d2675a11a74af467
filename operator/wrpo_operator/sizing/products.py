"""Memory of well-known accelerators, for nodes whose labels name the product only.

The labels of NVIDIA's and AMD's discovery state the memory itself; this table is for clouds that label the product, and
for queues whose nodes cannot be read. Of products of several sizes with one name it has the smallest.
"""

from __future__ import annotations

import re

_GIB = 1024
_MEMORY_MIB: tuple[tuple[str, int], ...] = (
    (r"gb300|b300", 275_000),
    (r"gb200|b200", 183_000),
    (r"gh200.*144g", 144_000),
    (r"gh200", 97_000),
    (r"h200", 143_771),
    (r"h100.*nvl", 95_000),
    (r"h100|h800", 81_251),
    (r"h20", 97_000),
    (r"[ah][18]00.*80gb", 81_251),
    (r"a100|a800", 40_536),
    (r"a10g?", 22_731),
    (r"a16", 15_356),
    (r"a2", 15_356),
    (r"a30", 24_576),
    (r"a40", 45_634),
    (r"l40s?|l20", 45_634),
    (r"l4", 22_731),
    (r"v100.*32gb", 32_501),
    (r"v100", 16_160),
    (r"p100", 16_280),
    (r"t4", 15_109),
    (r"p4", 7_611),
    (r"k80", 11_441),
    (r"rtx-pro-6000", 97_000),
    (r"rtx-6000-ada|rtx-a6000|a6000", 48_600),
    (r"rtx-5090", 32_607),
    (r"rtx-(3090|4090)", 24_564),
    (r"mi35[05]x", 294_000),
    (r"mi325x", 261_000),
    (r"mi300x", 196_000),
    (r"mi300a", 130_000),
    (r"mi2[15]0x?", 65_000),
    (r"mi100", 32_000),
    (r"max-1550", 128 * _GIB),
    (r"max-1100", 48 * _GIB),
    (r"flex-170", 14 * _GIB),
    (r"flex-140", 5 * _GIB),
)
"""Part of a product's name (a whole word or several) -> MiB of one accelerator; the first that is found counts."""


def known_memory_mib(product: str) -> int | None:
    """Return the memory of a product, named as in any cloud's labels (NVIDIA-L40S, nvidia-tesla-a100, h100); else
    None.
    """
    name = f"-{re.sub(r'[^a-z0-9]+', '-', product.lower())}-"
    return next((memory for words, memory in _MEMORY_MIB if re.search(rf"-({words})-", name)), None)
