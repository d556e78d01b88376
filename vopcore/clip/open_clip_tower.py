"""Towers of open_clip's own transformer: ViT, CLIPA and CoCa for frames; for texts the causal and others."""

from functools import lru_cache

import torch
from open_clip.transformer import (
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
    text_global_pool,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vopcore.clip.autocast import autocast_dtype
from vopcore.clip.interface import LibraryModule
from vopcore.clip.tokens import Block, Tokens
from vopcore.clip.towers import (
    Branch,
    Projection,
    TextTower,
    Tower,
    VisionTower,
    parameters_of,
)
from vopcore.clip.training_block import (
    TrainingBlock,
    attend,
    for_training,
    norm_for_training,
    patches_for_training,
)

AFTER_EMBEDDING = (
    "transformer.",
    "ln_post.",
    "proj",
    "attn_pool",
)  # parameters behind the first block's input

# In the place of log 0: the weight of such a key is 0, but a sequence of nothing else stays finite.
LOG_ZERO = -1e4


class ParallelAttention(nn.Module):
    """A self-attention and a module over the same input."""

    def __init__(self, attn: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.adapter = adapter

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        **options: object,
    ) -> tuple[Tensor, Tensor | None]:
        """What nn.MultiheadAttention takes and gives."""
        output, weights = self.attn(query, key, value, **options)
        return output + self.adapter(query).to(output.dtype), weights


class ParallelMLP(nn.Module):
    """An MLP and a module over the same input."""

    def __init__(self, mlp: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> [N, L, D]"""
        output = self.mlp(x)
        return output + self.adapter(x).to(output.dtype)


class OpenClipTower(Tower):
    """What both towers have in common: `ResidualAttentionBlock`s."""

    @property
    def transformer(self) -> Transformer:
        """The module that holds the blocks."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """`resblocks`, [N, L, D] -> [N, L, D]."""
        return self.transformer.resblocks

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.transformer.width

    def run_block(self, block: LibraryModule, tokens: Tokens) -> Tensor:
        """open_clip's own forward, to the bit, but in training once `prepare_for_training` was called."""
        if block.training and isinstance(block, TrainingBlock) and not masks_pairs_of_each(tokens):
            return attend(
                block,
                tokens.x,
                tokens.x[:, :0],
                **key_masks(tokens, 0),
                read=tokens.read,
            )
        return block(tokens.x, attn_mask=attention_mask(tokens, block))

    def attend(
        self,
        block: LibraryModule,
        tokens: Tokens,
        prompts: Tensor,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Prompts are only looked at: keys and values without queries or an MLP."""
        if masks_pairs_of_each(tokens):
            return super().attend(block, tokens, prompts, hidden)
        masks = key_masks(tokens, prompts.shape[1], hidden)
        return attend(
            block,
            tokens.x,
            prompts,
            **masks,
            read=tokens.read,
        )

    def add_beside(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Around `attn` or `mlp`."""
        parallel = {"attn": ParallelAttention, "mlp": ParallelMLP}[branch]
        setattr(block, branch, parallel(getattr(block, branch), module))

    def add_behind(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Behind the layer scale, which is the last of each residual branch."""
        site = {"attn": "ls_1", "mlp": "ls_2"}[branch]
        setattr(block, site, nn.Sequential(getattr(block, site), module))

    def projections(self, block: LibraryModule) -> dict[str, Projection]:
        """Query, key and value are rows of one matrix."""
        places = {letter: Projection(block.attn, "in_proj_weight", i) for i, letter in enumerate("qkv")}
        return places | {"o": Projection(block.attn.out_proj, "weight", 0)}

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """As open_clip keeps it."""
        self.transformer.grad_checkpointing = enabled

    def prepare_for_training(self) -> None:
        """See `training_block`."""
        for block in self.blocks:
            for_training(block)
        for module in self.clip.modules():  # those outside the blocks too
            norm_for_training(module)
            patches_for_training(module)


class OpenClipVision(OpenClipTower, VisionTower):
    """open_clip's `VisionTransformer`."""

    has_halves = True

    @staticmethod
    def builds(visual: LibraryModule) -> bool:
        """Whether `visual` is of this family."""
        if not isinstance(visual, VisionTransformer):
            return False
        return all(
            isinstance(block, Block | ResidualAttentionBlock) for block in visual.transformer.resblocks
        )

    @property
    def transformer(self) -> Transformer:
        """The module that holds the blocks."""
        return self.clip.visual.transformer

    @property
    def reads_class_token(self) -> bool:
        """Not with CLIPA's average or CoCa's attention pooling."""
        visual = self.clip.visual
        return visual.attn_pool is None and visual.pool_type == "tok"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        return tuple(self.clip.visual.image_size)

    @property
    def length(self) -> int:
        """Tokens of a frame, the class token included."""
        return len(self.clip.visual.positional_embedding)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it takes pixels."""
        return self.clip.visual.conv1.weight.dtype

    @property
    def grad_checkpointing(self) -> bool:
        """As open_clip keeps it."""
        return self.transformer.grad_checkpointing

    def embed(self, frames: Tensor) -> Tensor:
        """frames Float [N, 3, H, W], normalised -> [N, L, width]: the class token, then the patches."""
        return self.clip.visual._embeds(frames)

    def pool(self, tokens: Tokens) -> Tensor:
        """-> features [N, D]"""
        visual = self.clip.visual
        pooled = visual._pool(tokens.x)[0]
        return pooled if visual.proj is None else pooled @ visual.proj

    def add_before_attention(self, block: LibraryModule, module: nn.Module) -> None:
        """Behind the norm before the attention."""
        block.ln_1 = nn.Sequential(block.ln_1, module)

    def attention(
        self,
        block: LibraryModule,
        tokens: Tokens,
        change: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """Of a `TrainingBlock`: with its projections, heads and scales."""
        x = tokens.x
        attn = block.attn
        normed = block.ln_1(x)
        projections = attn.project(normed, normed)
        if change is not None:
            changes = change(normed).chunk(3, dim=-1)
            pairs = zip(projections, changes, strict=True)
            projections = [projected + added.to(projected.dtype) for projected, added in pairs]

        heads = []
        for rows in projections:
            heads.append(rows.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2))
        queries, keys, values = heads

        bias = size_bias(tokens, queries.dtype)
        queries = queries[:, :, : tokens.read]
        attended = nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            bias,
        )
        attended = attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x[:, : tokens.read] + block.ls_1(attended), keys.mean(dim=1)

    def mlp(self, block: LibraryModule, x: Tensor) -> Tensor:
        """Norm, MLP and scale."""
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def embedding(self) -> dict[str, nn.Parameter]:
        """The parameters before the first block, by name."""
        named = self.clip.visual.named_parameters()
        return {name: parameter for name, parameter in named if not name.startswith(AFTER_EMBEDDING)}

    def output_projection(self) -> list[nn.Parameter]:
        """`visual.proj`"""
        return parameters_of([self.clip.visual.proj])

    def head(self) -> list[nn.Parameter]:
        """The last norm, CoCa's attention pooling and the projection."""
        visual = self.clip.visual
        return parameters_of([visual.ln_post, visual.attn_pool, visual.proj])


class OpenClipText(OpenClipTower, TextTower):
    """open_clip's `TextTransformer`, or its parts in a `CLIP`."""

    @staticmethod
    def builds(text: LibraryModule) -> bool:
        """Whether `text` is of this family."""
        transformer = getattr(text, "transformer", None)
        if not isinstance(transformer, Transformer):
            return False
        return all(isinstance(block, Block | ResidualAttentionBlock) for block in transformer.resblocks)

    @property
    def transformer(self) -> Transformer:
        """The module that holds the blocks."""
        return self.text.transformer

    @property
    def pool_type(self) -> str:
        """Where the feature is read: `argmax` or `eos` (the end token), `last`, `first`."""
        return getattr(self.clip, "text_pool_type", None) or self.text.pool_type

    @property
    def eos_id(self) -> int | None:
        """The end token where `pool_type` is `eos`."""
        return getattr(self.clip, "text_eos_id", None) or getattr(self.text, "eos_id", None)

    @property
    def class_embedding(self) -> nn.Parameter | None:
        """CoCa's class token, which stands behind the text."""
        return getattr(self.text, "cls_emb", None)

    @property
    def can_be_trimmed(self) -> bool:
        """Whether what stands behind the end token is never seen: the tower is causal and read at that
        token.
        """
        causal = self.text.attn_mask is not None
        return causal and self.class_embedding is None and self.pool_type in ("argmax", "eos")

    def encode(self, ids: Tensor) -> Tensor:
        """ids Int [N, L] -> features [N, D]. Where what follows the end token is not seen, a batch costs in
        training its longest text; a tower that reads its padding gets all of it.
        """
        # asking a GPU would stop the host
        if self.clip.training and ids.device.type == "cpu":
            ids = ids[:, : self.longest(ids)]

        tokens = self._embed(ids)
        for block in self.blocks:
            if self.transformer.grad_checkpointing:
                tokens = checkpoint(
                    _run,
                    tokens.x,
                    tokens,
                    block,
                    use_reentrant=False,
                )
            else:
                tokens = tokens.run(block)
        return self._project(self._pool(tokens.x, ids))

    def output_projection(self) -> list[nn.Parameter]:
        """`text_projection`, a matrix or a linear layer."""
        return parameters_of([self.text.text_projection])

    def head(self) -> list[nn.Parameter]:
        """The last norm and the projection."""
        return parameters_of([self.text.ln_final, self.text.text_projection])

    def longest(self, ids: Tensor) -> int:
        """Positions up to the last end token, where what follows it is not seen."""
        if not self.can_be_trimmed:
            return ids.shape[1]
        if self.pool_type == "argmax":
            # The end token has the largest number of all.
            is_end = ids
        else:
            assert self.eos_id is not None, "a tower that is read at its end token knows which that is"
            is_end = (ids == self.eos_id).int()
        return int(is_end.argmax(dim=-1).max()) + 1

    def _embed(self, ids: Tensor) -> Tokens:
        text = self.text
        x = text.token_embedding(ids)
        hidden = None
        if self.class_embedding is not None:
            # CoCa's published weights know a mask that is one place off: padding hides what stands behind it.
            x = torch.cat(
                [x, self.class_embedding.to(x.dtype).expand(len(x), 1, -1)],
                dim=1,
            )
            hidden = nn.functional.pad(ids == text.pad_id, (1, 0), value=False)
        x = x + text.positional_embedding[: x.shape[1]].to(x.dtype)
        # Under autocast the residual stream is bf16, as that of the frames.
        x = x.to(autocast_dtype(x) or x.dtype)
        return Tokens(
            x=x,
            tower=self,
            prefix=1,
            causal=text.attn_mask is not None,
            hidden=hidden,
        )

    def _pool(self, x: Tensor, ids: Tensor) -> Tensor:
        text = self.text
        if self.class_embedding is not None:
            return text.ln_final(x[:, -1])
        return text_global_pool(
            text.ln_final(x),
            ids,
            self.pool_type,
            eos_token_id=self.eos_id,
        )

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _run(
    x: Tensor,
    tokens: Tokens,
    block: LibraryModule,
) -> Tokens:
    return tokens.with_x(x).run(block)


def size_bias(tokens: Tokens, dtype: torch.dtype) -> Tensor | None:
    """What is added to the logits of merged tokens as keys, [N, 1, 1, L]: log of their sizes."""
    if tokens.sizes is None:
        return None
    bias = tokens.sizes.clamp(min=1).log().masked_fill(tokens.sizes == 0, LOG_ZERO)
    return bias[:, None, None].to(dtype)


def masks_pairs_of_each(tokens: Tokens) -> bool:
    """Whether each sequence has a mask of pairs of its own, as in CoCa's text tower: causal, and with
    padding.
    """
    return tokens.causal and tokens.hidden is not None


def attention_mask(tokens: Tokens, block: LibraryModule) -> Tensor | None:
    """The additive mask of open_clip's blocks: [L, L], or [N * heads, L, L] where tokens are hidden."""
    mask = causal_mask(tokens.x) if tokens.causal else None
    if tokens.hidden is None:
        return mask

    length = tokens.x.shape[1]
    hidden = torch.zeros(
        tokens.hidden.shape,
        dtype=tokens.x.dtype,
        device=tokens.x.device,
    )
    hidden = hidden.masked_fill(tokens.hidden, float("-inf"))
    pairs = hidden.unsqueeze(1).expand(-1, length, -1)
    if mask is not None:
        pairs = pairs + mask
    attention = next(module for module in block.modules() if isinstance(module, nn.MultiheadAttention))
    return pairs.repeat_interleave(attention.num_heads, 0)


def key_masks(
    tokens: Tokens,
    prompts: int,
    hidden_prompts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The mask that `attend` takes over `prompts` prompts and the tokens, if one is needed."""
    if tokens.causal:
        return {"attn_mask": causal_mask(tokens.x, prompts)}
    if tokens.hidden is None and hidden_prompts is None:
        return {}

    hidden = tokens.hidden
    if hidden is None:
        hidden = torch.zeros(
            tokens.x.shape[:2],
            dtype=torch.bool,
            device=tokens.x.device,
        )
    if hidden_prompts is None:
        hidden_prompts = hidden.new_zeros(len(hidden), prompts)
    hidden = torch.cat([hidden_prompts, hidden], dim=1)
    mask = torch.zeros(hidden.shape, dtype=tokens.x.dtype, device=tokens.x.device)
    return {"key_padding_mask": mask.masked_fill(hidden, float("-inf"))}


def causal_mask(x: Tensor, prompts: int = 0) -> Tensor:
    """The additive mask [L, prompts + L] under which a token of x [N, L, D] sees itself and those before it,
    and all but the first see the prompts, which come first among the keys.

    Every block of a tower asks for the same one, so the last few are kept.
    """
    return kept_causal_mask(x.shape[1], prompts, x.dtype, x.device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # autograd may not keep what inference mode has made
def kept_causal_mask(
    length: int,
    prompts: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The mask of `causal_mask`; not to be written to."""
    mask = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
    if not prompts:
        return mask
    seen = mask.new_zeros(length, prompts)
    seen[0] = float("-inf")
    return torch.cat([seen, mask], dim=1)
