"""Blocks that methods put around the blocks of a tower: prompts of one kind or another."""

from collections.abc import Callable

from torch import Tensor, nn

from vopcore.clip.autocast import autocast_dtype
from vopcore.clip.tokens import Block, Tokens
from vopcore.clip.towers import Tower


class Prompts(nn.Module):
    """`count` prompt tokens, the same for every sequence; normal init, std 0.02, as VoP's release."""

    def __init__(self, tower: Tower, count: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(nn.init.normal_(tower.new(count, tower.width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> prompts [N, count, D]."""
        return self.tokens.expand(len(x), -1, -1)


class Prompted(Block):
    """A block that reads prompts behind the prefix of each sequence.

    Fresh `prompts` take the place of the `held` ones that the block before has kept; they leave the sequence
    after this block unless `keep`. Without `prompts` the held ones are read on.
    """

    def __init__(
        self,
        block: nn.Module,
        prompts: nn.Module | None,
        held: int = 0,
        keep: bool = False,
    ) -> None:
        super().__init__(block)
        self.prompts = prompts
        self.held = held
        self.keep = keep

    def forward(self, tokens: Tokens) -> Tokens:
        """The sequences come out longer by the prompts that are kept."""
        held = tokens.x[:, tokens.prefix - self.held : tokens.prefix]
        if self.prompts is None:
            prompts = held
        elif isinstance(self.prompts, Prompts) and autocast_dtype(tokens.x) is not None:
            # the same for all: cast and normalised once, not per sequence
            prompts = self.prompts.tokens[None]
        else:
            prompts = self.prompts(tokens.x)
        if self.held:
            tokens = tokens.remove(self.held)
        return with_prompts(self.block, tokens, prompts, keep=self.keep)


def with_prompts(
    block: nn.Module,
    tokens: Tokens,
    prompts: Tensor,
    keep: bool = False,
) -> Tokens:
    """Run `block` on `[prefix, prompts, the rest]`; prompts [N or 1, p, D].

    In a causal tower the order of the longer sequence says who sees whom: a prompt is seen by whoever sees
    the token it stands before (VoP, Eq. 3). Prompts that are not kept have no output, so a tower may leave
    it out.
    """
    count = prompts.shape[1]
    if not count:
        return tokens.run(block)
    if keep:
        return tokens.insert(prompts).run(block)
    if isinstance(block, Block):
        return tokens.insert(prompts).run(block).remove(count)
    return tokens.with_x(tokens.tower.attend(block, tokens, prompts.to(tokens.x.dtype)))


def wrap(
    tower: Tower,
    make: Callable[[int, nn.Module], nn.Module],
    layers: range | None = None,
) -> None:
    """Put `make(i, block)` in the place of the blocks numbered `layers` (all, if None), counted from 0."""
    for i in range(tower.layers) if layers is None else layers:
        tower.blocks[i] = make(i, tower.blocks[i])
