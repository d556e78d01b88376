"""Every tuning method once more, straight from its equations: loops over videos, frames and heads, raw
weights, no masks (only real frames and words are computed), nothing of vopcore or open_clip."""

import torch

HEADS = {"vision": 3, "text": 2}
EOT = 98


class Reference:
    """The towers of a tiny CLIP with weights `w` (its state dict) and tuned tensors `p`, both by name."""

    def __init__(self, name, method, w, p):
        self.name, self.method, self.p = name, method, p
        self.text_at = "text." if "text.transformer.resblocks.0.ln_1.weight" in w else ""
        self.w = {k: p.get(k, v) for k, v in w.items()}
        self.at = {"vision": "visual.transformer.resblocks", "text": f"{self.text_at}transformer.resblocks"}
        self.layers = {t: 1 + max(int(k.split("resblocks.")[1].split(".")[0]) for k in w if k.startswith(at))
                       for t, at in self.at.items()}  # fmt: skip

    # the frozen CLIP

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, x, name, heads, causal):
        weight = self.low_rank(f"{name}.in_proj_weight")
        q, k, v = (x @ weight.T + self.w[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
        size, out = x.shape[-1] // heads, []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / size**0.5
            if causal:
                later = torch.ones_like(scores).triu(1).bool()
                scores = scores.masked_fill(later, -float("inf"))
            out.append(scores.softmax(-1) @ v[:, part])
        return torch.cat(out, -1) @ self.w[f"{name}.out_proj.weight"].T + self.w[f"{name}.out_proj.bias"]

    def mlp(self, x, name):
        hidden = x @ self.w[f"{name}.c_fc.weight"].T + self.w[f"{name}.c_fc.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return hidden @ self.w[f"{name}.c_proj.weight"].T + self.w[f"{name}.c_proj.bias"]

    def block(self, x, tower, i):
        """x [L, D]: one sequence."""
        at = f"{self.at[tower]}.{i}"
        inner = self.norm(x, f"{at}.ln_1")
        z = self.attention(inner, f"{at}.attn", HEADS[tower], tower == "text")
        x = x + self.after(z, inner, tower, i, "attn", "ls_1")
        inner = self.norm(x, f"{at}.ln_2")
        return x + self.after(self.mlp(inner, f"{at}.mlp"), inner, tower, i, "mlp", "ls_2")

    # what a method does inside a block

    def low_rank(self, name):
        module, weight = name.rsplit(".", 1)
        at = f"{module}.parametrizations.{weight}.0"
        if f"{at}.a" not in self.p:
            return self.w[name]
        a, b, scale = self.p[f"{at}.a"], self.p[f"{at}.b"], self.method.alpha / self.method.rank
        q, k, v = self.w[name].chunk(3)
        return torch.cat([q + scale * b[0] @ a[0], k, v + scale * b[1] @ a[1]])

    def after(self, z, inner, tower, i, branch, site):
        at = f"{self.at[tower]}.{i}"
        if f"{at}.{branch}.adapter.down_weight" in self.p:
            at = f"{at}.{branch}.adapter"
            hidden = (inner @ self.p[f"{at}.down_weight"].T + self.p[f"{at}.down_bias"]).clamp(min=0)
            return z + 0.1 * (hidden @ self.p[f"{at}.up_weight"].T + self.p[f"{at}.up_bias"])
        if f"{at}.{site}.1.down_weight" in self.p:
            vision = f"{self.at['vision']}.{i}.{site}.1.up.1"  # the shared slice
            at = f"{at}.{site}.1"
            hidden = z @ self.p[f"{at}.down_weight"].T + self.p[f"{at}.down_bias"]
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            parts = [hidden @ self.p[f"{at}.up.0.weight"].T + self.p[f"{at}.up.0.bias"]]
            if i < min(self.layers.values()):
                parts.append(hidden @ self.p[f"{vision}.weight"].T + self.p[f"{vision}.bias"])
            return z + torch.cat(parts, -1)
        return z

    # the prompts of layer i

    def tokens(self, tower, i, *kinds):
        for kind in kinds:
            if (tensor := self.p.get(f"{self.at[tower]}.{i}.{kind}")) is not None:
                return tensor
        return None

    def coupled(self, tower, i):
        source = self.tokens("vision", i, "prompts.source.tokens")
        if source is None or tower == "text":
            return source
        return source @ self.tokens("vision", i, "prompts.weight").T + self.tokens(
            "vision", i, "prompts.bias"
        )

    def lstm(self, rows, at):
        h = c = torch.zeros_like(rows[0])
        out = []
        for row in rows:
            gates = self.p[f"{at}.weight_ih_l0"] @ row + self.p[f"{at}.bias_ih_l0"]
            gates = gates + self.p[f"{at}.weight_hh_l0"] @ h + self.p[f"{at}.bias_hh_l0"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return out

    def context(self, cls):
        """CLS tokens of a video, in order -> the specific prompts of each frame."""
        at = f"{self.at['vision']}.0.model"
        there = self.lstm(cls, f"{at}.readers.0")
        back = self.lstm(cls[::-1], f"{at}.readers.1")[::-1]
        states = [torch.cat(pair) for pair in zip(there, back, strict=True)]
        weight, bias = self.p[f"{at}.project.weight"], self.p[f"{at}.project.bias"]
        return [(weight @ state + bias).view(-1, cls[0].shape[0]) for state in states]

    def frame_prompts(self, i, frames):
        """For each frame of a video, the prompts that it reads in vision layer i."""
        generic = self.tokens("vision", i, "prompts.tokens", "block.prompts.tokens")
        table = self.tokens("vision", i, "prompts.table", "block.prompts.table")
        if table is not None:
            generic = self.tokens("vision", i, "prompts.generic.tokens", "block.prompts.generic.tokens")
            return [torch.cat([generic, table[f]]) for f in range(len(frames))]
        if self.name in ("vop_c", "vop_fc"):
            return [torch.cat([generic, specific]) for specific in self.context([x[0] for x in frames])]
        if generic is None:
            generic = self.coupled("vision", i)
        return [generic] * len(frames)

    # the towers

    def carried(self, x, tower, fresh):
        """CoOp and MaPLe: prompts that stay in the sequence until fresh ones or the end replace them."""
        held = 0
        for i in range(self.layers[tower]):
            prompts = fresh(i)
            if prompts is not None:
                x = torch.cat([x[:1], prompts, x[1 + held :]])
                held = len(prompts)
            x = self.block(x, tower, i)
        return torch.cat([x[:1], x[1 + held :]])

    def deep(self, x, tower, i, prompts):
        """VoP and VPT: prompts of one layer, thrown away behind it."""
        if prompts is None:
            return self.block(x, tower, i)
        x = self.block(torch.cat([x[:1], prompts, x[1:]]), tower, i)
        return torch.cat([x[:1], x[1 + len(prompts) :]])

    def text(self, tokens):
        """One caption, Int [L] -> [D]: the end token's feature; what stands behind it is not computed."""
        end = tokens.tolist().index(EOT)
        w, at = self.w, self.text_at
        x = w[f"{at}token_embedding.weight"][tokens[: end + 1]] + w[f"{at}positional_embedding"][: end + 1]
        if self.name == "coop":
            x = self.carried(x, "text", lambda i: self.tokens("text", i, "prompts.tokens"))
        elif self.name == "maple":
            x = self.carried(x, "text", lambda i: self.coupled("text", i))
        else:
            for i in range(self.layers["text"]):
                x = self.deep(x, "text", i, self.tokens("text", i, "prompts.tokens"))
        return self.norm(x, f"{at}ln_final")[-1] @ w[f"{at}text_projection"]

    def video(self, images):
        """The real frames of one video, normalised pixels [n, 3, H, W] -> [n, D]."""
        frames = [self.embed(image) for image in images]
        if self.name == "maple":
            frames = [self.carried(x, "vision", lambda i: self.coupled("vision", i)) for x in frames]
        else:
            for i in range(self.layers["vision"]):
                frames = self.layer(i, frames)
        return torch.stack([self.norm(x, "visual.ln_post")[0] @ self.w["visual.proj"] for x in frames])

    def embed(self, image):
        kernel = self.w["visual.conv1.weight"]
        size = kernel.shape[-1]
        rows = [
            (kernel * image[:, y : y + size, x : x + size]).sum((1, 2, 3))
            for y in range(0, image.shape[1], size)
            for x in range(0, image.shape[2], size)
        ]
        tokens = torch.stack([self.w["visual.class_embedding"], *rows])
        return self.norm(tokens + self.w["visual.positional_embedding"], "visual.ln_pre")

    def layer(self, i, frames):
        if self.name.startswith("vop_f") and i >= self.method.spatial_layers:
            return self.joint(i, frames)
        prompts = self.frame_prompts(i, frames)
        return [self.deep(x, "vision", i, prompt) for x, prompt in zip(frames, prompts, strict=True)]

    def joint(self, i, frames):
        """VoP^F: one sequence [c_1..c_F, P_i, E_1..E_F]."""
        if i == self.method.spatial_layers:
            table = self.tokens("vision", i, "positions.table")
            frames = [x + table[f] for f, x in enumerate(frames)]
        prompts = self.tokens("vision", i, "prompts.tokens")
        n, patches = len(frames), len(frames[0]) - 1
        x = torch.cat([torch.stack([x[0] for x in frames]), prompts, *(x[1:] for x in frames)])
        x = self.block(x, "vision", i)
        rest = x[n + len(prompts) :]
        return [torch.cat([x[f : f + 1], rest[f * patches : (f + 1) * patches]]) for f in range(n)]
