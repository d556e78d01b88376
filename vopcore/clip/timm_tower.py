"""Vision towers of timm: its VisionTransformer (SigLIP, MobileCLIP-B and -L, ViTamin) and Eva (EVA, PE-
Core).
"""

from open_clip.timm_model import TimmModel
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as VisionBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vopcore.clip.interface import LibraryModule
from vopcore.clip.onednn_linear import OneDNNLinear
from vopcore.clip.tokens import Block, Tokens
from vopcore.clip.towers import Branch, Projection, VisionTower, parameters_of

BLOCKS = (VisionBlock, EvaBlock, EvaBlockPostNorm)


class Parallel(nn.Module):
    """An attention or an MLP, and a module over the same input."""

    def __init__(self, inner: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """x [N, L, D] -> [N, L, D]; `options` are those of timm's attention."""
        output = self.inner(x, **options)
        return output + self.adapter(x).to(output.dtype)


class Preceded(nn.Module):
    """An attention whose input goes through a module first."""

    def __init__(self, inner: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.module = module

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """x [N, L, D] -> [N, L, D]; `options` are those of timm's attention."""
        return self.inner(self.module(x), **options)


class TimmVision(VisionTower):
    """A `TimmModel` whose trunk is a row of timm's transformer blocks."""

    @staticmethod
    def builds(visual: LibraryModule) -> bool:
        """Whether `visual` is of this family."""
        if not isinstance(visual, TimmModel):
            return False
        if type(visual.trunk) not in (VisionTransformer, Eva):
            return False
        return all(isinstance(block, Block) or type(block) in BLOCKS for block in visual.trunk.blocks)

    @property
    def trunk(self) -> LibraryModule:
        """timm's model."""
        return self.clip.visual.trunk

    @property
    def blocks(self) -> nn.ModuleList:
        """timm's blocks; in a VisionTransformer an nn.Sequential, which takes assignments too."""
        return self.trunk.blocks

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.trunk.embed_dim

    @property
    def reads_class_token(self) -> bool:
        """Not with attention (`map`) or average pooling."""
        return self.trunk.attn_pool is None and self.trunk.global_pool == "token"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels: what the trunk was built for, which one of open_clip's
        configs (ViTamin-XL-384) states wrongly.
        """
        return tuple(self.trunk.patch_embed.img_size)

    @property
    def length(self) -> int:
        """Tokens of a frame, class and register tokens included."""
        return self.trunk.patch_embed.num_patches + self.trunk.num_prefix_tokens

    @property
    def grad_checkpointing(self) -> bool:
        """As timm keeps it."""
        return self.trunk.grad_checkpointing

    def embed(self, frames: Tensor) -> Tensor:
        """frames Float [N, 3, H, W], normalised -> [N, L, width]."""
        trunk = self.trunk
        x = trunk.patch_embed(frames)
        x = trunk._pos_embed(x)
        if isinstance(trunk, Eva):
            x, _ = x  # the rotary positions, which `tokens` asks for
        return trunk.norm_pre(x)

    def tokens(
        self,
        x: Tensor,
        frames: int,
        real: Tensor | None,
    ) -> Tokens:
        """With the rotary positions of one frame, if the tower has them."""
        rope = self.trunk.rope.get_embed() if getattr(self.trunk, "rope", None) is not None else None
        prefix = self.trunk.num_prefix_tokens
        return Tokens(
            x=x,
            tower=self,
            prefix=prefix,
            frames=frames,
            real=real,
            rope=rope,
        )

    def run_block(self, block: LibraryModule, tokens: Tokens) -> Tensor:
        """timm's own forward. Rotary positions are those of the tokens behind the prefix, prompts included
        there.
        """
        options: dict[str, Tensor] = {}
        if tokens.hidden is not None:
            # timm's mask is True where a token is seen
            options["attn_mask"] = ~tokens.hidden[:, None, None]
        if tokens.rope is None:
            return block(tokens.x, **options)

        attention = rotary_attention(block)
        usual = attention.num_prefix_tokens
        attention.num_prefix_tokens = tokens.prefix
        try:
            return block(tokens.x, rope=tokens.rope, **options)
        finally:
            attention.num_prefix_tokens = usual

    def pool(self, tokens: Tokens) -> Tensor:
        """-> features [N, D]"""
        x = self.trunk.norm(tokens.x)
        return self.clip.visual.head(self.trunk.forward_head(x))

    def embedding(self) -> dict[str, nn.Parameter]:
        """The parameters before the first block, by name."""
        before = (
            "cls_token",
            "reg_token",
            "pos_embed",
            "patch_embed.",
            "norm_pre.",
            "rope.",
        )
        named = self.trunk.named_parameters()
        return {name: parameter for name, parameter in named if name.startswith(before)}

    def output_projection(self) -> list[nn.Parameter]:
        """The trunk's own head, or the linear layers that open_clip puts behind it; SigLIP's towers have
        neither.
        """
        return parameters_of([self.trunk.head, self.clip.visual.head])

    def head(self) -> list[nn.Parameter]:
        """Norms, attention pooling and linear layers, of timm and of open_clip."""
        trunk = self.trunk
        return parameters_of([trunk.norm, trunk.attn_pool, trunk.fc_norm, trunk.head, self.clip.visual.head])

    def add_beside(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Around `attn` or `mlp`."""
        setattr(block, branch, Parallel(getattr(block, branch), module))

    def add_behind(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Behind the stochastic depth, which is the last of each residual branch; scales come before it."""
        site = {"attn": "drop_path1", "mlp": "drop_path2"}[branch]
        setattr(block, site, nn.Sequential(getattr(block, site), module))

    def add_before_attention(self, block: LibraryModule, module: nn.Module) -> None:
        """Behind the norm before the attention; some of EVA's blocks have theirs after it."""
        if isinstance(block, EvaBlockPostNorm):
            block.set_submodule("attn", Preceded(block.attn, module))
        else:
            block.norm1 = nn.Sequential(block.norm1, module)

    def projections(self, block: LibraryModule) -> dict[str, Projection]:
        """Query, key and value are rows of one matrix, or three matrices (EVA02)."""
        attention = block.attn
        places = {}
        for part, letter in enumerate("qkv"):
            if attention.qkv is not None:
                places[letter] = Projection(attention.qkv, "weight", part)
            else:
                matrix = getattr(attention, f"{letter}_proj")
                places[letter] = Projection(matrix, "weight", 0)
        places["o"] = Projection(attention.proj, "weight", 0)
        return places

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """As timm keeps it."""
        self.trunk.set_grad_checkpointing(enabled)

    def prepare_for_training(self) -> None:
        """Products with frozen matrices go through oneDNN on a CPU."""
        for module in self.blocks.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear


def rotary_attention(block: LibraryModule) -> LibraryModule:
    """The attention of a block, which may stand beside an adapter or behind one."""
    attention = block.attn
    return attention.inner if isinstance(attention, Parallel | Preceded) else attention
