"""Blocks: what a node runs. The Block protocol, the registry, the price of a run, and the built-in blocks.

A block of your own is a class that any installed package can bring::

    from shmcache.blocks import Block, Cost

    class Shout(Block):
        id = "acme.shout"
        inputs = ("text",)
        outputs = ("text",)
        cost = Cost(1, "run")

        def run(self, inputs):
            yield "text", inputs["text"].upper()

A graph file names it by its id, if the package declares it as an entry point of group `shmcache.blocks` (the entry
point's name is the block's id) or the program called `register(Shout)`; or by its import path,
"acme.blocks:Shout", with nothing declared. Importing this package imports none of the built-in blocks' libraries.
"""

from shmcache.blocks.block import Block, Cost, Inputs, Outputs
from shmcache.blocks.price import charge_for
from shmcache.blocks.registry import forget_imported, get_block, known_blocks, register

__all__ = [
    "Block",
    "Cost",
    "Inputs",
    "Outputs",
    "charge_for",
    "forget_imported",
    "get_block",
    "known_blocks",
    "register",
]
