"""DGL from its equations: frames in a list, heads in a loop; nothing of vopcore."""

import torch
from support.methods_reference import EOT, HEADS, Reference


class DGLReference(Reference):
    """Local prompts stand before a frame, global ones beside the frames."""

    space = "visual.transformer.resblocks.0.space"
    count = 4  # prompts

    def __init__(self, name, method, w, p):
        super().__init__(name, method, w, p)
        if f"{self.space}.table" not in p:  # the text tower may come first
            self.space = next(key for key in p if key.endswith("space.table")).removesuffix(".table")

    def linear(self, x, name):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def layer_norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def encoded(self, i):
        """The rows of layer i behind the block of the transformer space, whose width has one head."""
        at = self.space
        x = self.p[f"{at}.table"][:, i]
        n = self.layer_norm(x, f"{at}.norm_1")
        weight, bias = self.p[f"{at}.attention.in_proj_weight"], self.p[f"{at}.attention.in_proj_bias"]
        q, k, v = (n @ weight.T + bias).chunk(3, dim=-1)
        attended = (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.linear(attended, f"{at}.attention.out_proj")
        hidden = self.linear(self.layer_norm(x, f"{at}.norm_2"), f"{at}.mlp.0")
        return x + self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{at}.mlp.2")

    def text_prompts(self, i):
        if self.method.space == "linear":
            return self.linear(self.p[f"{self.space}.table"][:, i], f"{self.space}.to_text")
        hidden = self.linear(self.encoded(i)[: self.count], f"{self.space}.to_text.0")
        return self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{self.space}.to_text.2")

    def local_prompts(self, i, frame):
        if self.method.space == "linear":
            return self.p[f"{self.space}.table"][:, i]
        start = (2 + frame) * self.count
        return self.encoded(i)[start : start + self.count]

    def text(self, tokens):
        end = tokens.tolist().index(EOT)
        w, at = self.w, self.text_at
        x = w[f"{at}token_embedding.weight"][tokens[: end + 1]] + w[f"{at}positional_embedding"][: end + 1]
        for i in range(self.layers["text"]):
            x = self.deep(x, "text", i, self.text_prompts(i))
        return self.norm(x, f"{at}ln_final")[-1] @ w[f"{at}text_projection"]

    def video(self, images):
        frames = [self.embed(image) for image in images]
        shared = self.p[f"{self.at['vision']}.0.prompts.tokens"]
        for i in range(self.layers["vision"]):
            for f, x in enumerate(frames):
                frames[f] = torch.cat([self.local_prompts(i, f), x[-self.length :]])
            entered = shared
            shared = self.read(i, entered, torch.cat([entered, *frames]))
            frames = [self.read(i, x, torch.cat([entered, x])) for x in frames]
        feature = self.norm(shared, "visual.ln_post")[0] @ self.w["visual.proj"]
        return feature.expand(len(images), -1)

    @property
    def length(self):
        """Tokens of a frame without local prompts."""
        return len(self.w["visual.positional_embedding"])

    def read(self, i, x, seen):
        """A block for x, over keys of `seen`."""
        at = f"{self.at['vision']}.{i}"
        weight, bias = self.w[f"{at}.attn.in_proj_weight"], self.w[f"{at}.attn.in_proj_bias"]
        q = (self.norm(x, f"{at}.ln_1") @ weight.T + bias).chunk(3, dim=-1)[0]
        _, k, v = (self.norm(seen, f"{at}.ln_1") @ weight.T + bias).chunk(3, dim=-1)
        size, out = x.shape[-1] // HEADS["vision"], []
        for h in range(HEADS["vision"]):
            part = slice(h * size, (h + 1) * size)
            out.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1) @ v[:, part])
        x = x + torch.cat(out, -1) @ self.w[f"{at}.attn.out_proj.weight"].T
        x = x + self.w[f"{at}.attn.out_proj.bias"]
        return x + self.mlp(self.norm(x, f"{at}.ln_2"), f"{at}.mlp")
