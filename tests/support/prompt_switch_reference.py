"""Prompt Switch from its equations: frames in a list; nothing of vopcore."""

import torch
from support.methods_reference import HEADS, Reference


class PromptSwitchReference(Reference):
    """The prompts of n real frames are the first n by n of the cube."""

    def video(self, images):
        n = len(images)
        cube = self.p[f"{self.at['vision']}.0.prompts.tokens"]
        frames = []
        for f, image in enumerate(images):
            x = self.embed(image)
            frames.append(torch.cat([x, cube[f, :n]]))
        for i in range(self.layers["vision"]):
            frames = self.exchanged(i, frames)
        return torch.stack([self.norm(x, "visual.ln_post")[0] @ self.w["visual.proj"] for x in frames])

    def exchanged(self, i, frames):
        """A layer; prompts are the last n tokens of each frame."""
        at = f"{self.at['vision']}.{i}"
        n = len(frames)
        normed = [self.norm(x, f"{at}.ln_1") for x in frames]
        out = []
        for f, x in enumerate(frames):
            prompts = torch.stack([normed[other][len(x) - n + f] for other in range(n)])
            read = torch.cat([normed[f][: len(x) - n], prompts])
            y = x + self.attention(read, f"{at}.attn", HEADS["vision"], False)
            out.append(y + self.mlp(self.norm(y, f"{at}.ln_2"), f"{at}.mlp"))
        return out
