"""MV-Adapter from its equations: frames and words in lists; nothing of vopcore."""

import torch
from support.methods_reference import EOT, HEADS, Reference


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


class MVAdapterReference(Reference):
    """Positions of n real frames are those of the first n."""

    frames = 4

    def linear(self, x, name):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def layer_norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def small_block(self, x, at, causal):
        q, k, v = self.linear(self.layer_norm(x, f"{at}.norm_1"), f"{at}.qkv").chunk(3, dim=-1)
        out = []
        for h in range(2):
            part = slice(h * 32, (h + 1) * 32)
            scores = q[:, part] @ k[:, part].T / 32**0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -float("inf"))
            out.append(scores.softmax(-1) @ v[:, part])
        x = x + self.linear(torch.cat(out, -1), f"{at}.out")
        hidden = quick_gelu(self.linear(self.layer_norm(x, f"{at}.norm_2"), f"{at}.into"))
        return quick_gelu(x + self.linear(hidden, f"{at}.back"))

    def down(self, y, at, tower, i):
        weight = self.p[f"{at}.down.weight"]
        behind = i - self.layers[tower]  # the last layer is -1
        if behind >= -self.method.tied_layers:
            vision = self.layers["vision"] + behind
            shared = self.p[f"{self.at['vision']}.{vision}.block.ls_2.1.tying.shared"]
            weight = self.linear(shared, f"{at}.tying.to_factors")[:, None] * weight
        return y @ weight.T + self.p[f"{at}.down.bias"]

    def halves(self, x, tower, i):
        """x behind the attention, and what the MLP adds to it."""
        at = f"{self.at[tower]}.{i}"
        inner = self.norm(x, f"{at}.ln_1")
        x = x + self.attention(inner, f"{at}.attn", HEADS[tower], tower == "text")
        return x, self.mlp(self.norm(x, f"{at}.ln_2"), f"{at}.mlp")

    def text(self, tokens):
        end = tokens.tolist().index(EOT)
        w, start = self.w, self.text_at
        x = w[f"{start}token_embedding.weight"][tokens[: end + 1]]
        x = x + w[f"{start}positional_embedding"][: end + 1]
        for i in range(self.layers["text"]):
            at = f"{self.at['text']}.{i}.block.ls_2.1"
            x, y = self.halves(x, "text", i)
            hidden = self.down(y, at, "text", i) + self.p[f"{at}.positions"][: end + 1]
            hidden = self.small_block(self.layer_norm(hidden, f"{at}.norm"), f"{at}.block", True)
            x = x + y + 0.1 * self.linear(hidden, f"{at}.up")
        return self.norm(x, f"{start}ln_final")[-1] @ w[f"{start}text_projection"]

    def layer(self, i, frames):
        at = f"{self.at['vision']}.{i}.block.ls_2.1"
        n = len(frames)
        halves = [self.halves(x, "vision", i) for x in frames]
        hidden = [quick_gelu(self.down(y, at, "vision", i)) for _, y in halves]

        classes = [d[0] for d in hidden]
        patches = [d[1:].mean(0) for d in hidden]
        table = self.p[f"{at}.positions"]
        positions = torch.cat([table[: 1 + n], table[1 + self.frames : 1 + self.frames + n]])
        sequence = torch.stack([self.p[f"{at}.token"], *classes, *patches]) + positions
        sequence = self.small_block(self.layer_norm(sequence, f"{at}.norm"), f"{at}.block", False)

        out = []
        video = self.linear(sequence[0], f"{at}.of_video")
        for f, (x, y) in enumerate(halves):
            summary = torch.cat([sequence[1 + f] + sequence[1 + n + f], video])
            squeezed = self.linear(summary, f"{at}.squeeze").clamp(min=0)
            factors = self.p[f"{at}.excite.weight"] @ squeezed + 1
            adapted = torch.cat([(factors * sequence[1 + f])[None], hidden[f][1:]])
            out.append(x + y + 0.1 * self.linear(adapted, f"{at}.up"))
        return out
