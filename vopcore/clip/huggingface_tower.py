"""Text towers of Hugging Face in open_clip: RoBERTa, XLM-RoBERTa and the encoder of NLLB (M2M-100).

Embeddings, layers, poolers and masks are those of transformers and open_clip; only the loop over the layers
is here, so that a layer may be a method's block.
"""

from dataclasses import dataclass
from typing import Any

from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from vopcore.clip.interface import CLIP, LibraryModule
from vopcore.clip.onednn_linear import OneDNNLinear
from vopcore.clip.tokens import Tokens
from vopcore.clip.towers import Branch, Projection, TextTower, parameters_of


@dataclass(frozen=True)
class LayerParts:
    """The paths of the linear layers inside a layer: of the attention, and the last of each residual
    branch.
    """

    query: str
    key: str
    value: str
    attn: str
    mlp: str


ROBERTA = LayerParts(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attn="attention.output.dense",
    mlp="output.dense",
)
M2M100 = LayerParts(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attn="self_attn.out_proj",
    mlp="fc2",
)
PARTS = {
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "m2m_100": M2M100,
}  # by config.model_type


class OutputBeside(nn.Module):
    """RoBERTa's end of a residual branch, `norm(dense(x) + input)`, with an adapter over the branch's
    input.
    """

    def __init__(self, output: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.output = output
        self.adapter = adapter

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """What transformers hands to the end of a branch."""
        beside = self.adapter(input_tensor).to(input_tensor.dtype)
        return self.output(hidden_states, input_tensor + beside)


class AttentionBeside(nn.Module):
    """M2M-100's self-attention, with an adapter over its input."""

    def __init__(self, attention: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.adapter = adapter

    def forward(
        self,
        hidden_states: Tensor,
        **options: object,
    ) -> tuple[Tensor, Tensor | None]:
        """What transformers hands to the attention."""
        output, weights = self.attention(hidden_states=hidden_states, **options)
        return output + self.adapter(hidden_states).to(output.dtype), weights


class FirstLinear(nn.Module):
    """The first linear layer of M2M-100's MLP, which remembers its input for the adapter beside the MLP."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> [N, L, H]"""
        self.input = x
        return self.linear(x)


class LastLinear(nn.Module):
    """The last linear layer of M2M-100's MLP, with an adapter over the input of the first."""

    def __init__(
        self,
        linear: nn.Module,
        adapter: nn.Module,
        first: FirstLinear,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.adapter = adapter
        self._first = (first,)  # in a tuple: it is no part of this module

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [N, L, H] -> [N, L, D]"""
        first = self._first[0]
        x = first.input
        first.input = None
        output = self.linear(hidden)
        return output + self.adapter(x).to(output.dtype)


class HuggingFaceText(TextTower):
    """An `HFTextEncoder` over one of the models in PARTS. All tokens see each other, but for padding."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__(clip)
        # by length: the prompts of a layer make it longer
        self._masks: dict[int, Any] = {}

    @staticmethod
    def builds(text: LibraryModule) -> bool:
        """Whether `text` is of this family."""
        if not isinstance(text, HFTextEncoder) or text.config.model_type not in PARTS:
            return False
        # a trained pooler would be left out here
        return getattr(text.transformer, "pooler", None) is None

    @property
    def model(self) -> LibraryModule:
        """The model of transformers."""
        return self.text.transformer

    @property
    def parts(self) -> LayerParts:
        """Where things are in a layer."""
        return PARTS[self.model.config.model_type]

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers of the encoder."""
        return self.model.layers if self.parts is M2M100 else self.model.encoder.layer

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.model.config.hidden_size

    def encode(self, ids: Tensor) -> Tensor:
        """ids Int [N, L] -> features [N, D]"""
        from transformers.modeling_outputs import BaseModelOutput

        text = self.text
        hidden = ids == text.config.pad_token_id
        tokens = Tokens(
            x=self._embed(ids),
            tower=self,
            prefix=1,
            hidden=hidden,
        )
        for block in self.blocks:
            tokens = tokens.run(block)

        x = self.model.layer_norm(tokens.x) if self.parts is M2M100 else tokens.x
        pooled = text.pooler(BaseModelOutput(last_hidden_state=x), (~hidden).long())
        return text.proj(pooled)

    def run_block(self, block: LibraryModule, tokens: Tokens) -> Tensor:
        """The layer of transformers, with the mask that transformers makes for its kind of attention."""
        from transformers.masking_utils import create_bidirectional_mask

        x = tokens.x
        length = x.shape[1]
        if length not in self._masks:
            assert tokens.hidden is not None, "`encode` says which tokens are padding"
            shown = (~tokens.hidden).long()
            mask = create_bidirectional_mask(
                config=self.model.config,
                inputs_embeds=x,
                attention_mask=shown,
            )
            self._masks[length] = mask
        return block(x, self._masks[length])

    def add_beside(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """At the end of RoBERTa's branches; around M2M-100's attention and MLP."""
        if self.parts is ROBERTA:
            holder = block.attention if branch == "attn" else block
            holder.output = OutputBeside(holder.output, module)
        elif branch == "attn":
            block.self_attn = AttentionBeside(block.self_attn, module)
        else:
            block.fc1 = FirstLinear(block.fc1)
            block.fc2 = LastLinear(block.fc2, module, block.fc1)

    def add_behind(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Behind the last linear layer of the branch."""
        path = getattr(self.parts, branch)
        linear = block.get_submodule(path)
        block.set_submodule(path, nn.Sequential(linear, module))

    def projections(self, block: LibraryModule) -> dict[str, Projection]:
        """Four matrices."""
        paths = {
            "q": self.parts.query,
            "k": self.parts.key,
            "v": self.parts.value,
            "o": self.parts.attn,
        }
        return {letter: Projection(block.get_submodule(path), "weight", 0) for letter, path in paths.items()}

    def output_projection(self) -> list[nn.Parameter]:
        """The linear layer or the MLP that open_clip puts behind the pooler."""
        return parameters_of([self.text.proj])

    def head(self) -> list[nn.Parameter]:
        """The last norm, where there is one, and what stands behind the pooler."""
        return parameters_of([getattr(self.model, "layer_norm", None), self.text.proj])

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Layers of transformers recompute themselves."""
        if enabled:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def prepare_for_training(self) -> None:
        """Products with frozen matrices go through oneDNN on a CPU."""
        for module in self.blocks.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear

    def _embed(self, ids: Tensor) -> Tensor:
        model = self.model
        if self.parts is ROBERTA:
            return model.embeddings(input_ids=ids)
        x = model.embed_tokens(ids)
        return x + model.embed_positions(ids, x).to(x.device)
