"""TempMe from its equations: tokens in lists, one by one; nothing of vopcore."""

import torch
from support.methods_reference import HEADS, Reference


class TempMeReference(Reference):
    """Vision blocks that merge, over a list of sequences; a sequence is (class tokens, patches), each a list
    of (token [D], how many patches it stands for). Padding frames are tokens that stand for none.
    """

    groups = (2, 2)  # 4 frames, joined in the two layers below the last

    def low_rank(self, name):
        at = name.removesuffix("in_proj_weight") + "parametrizations.in_proj_weight.0.low_rank"
        if f"{at}.a" not in self.p:
            return self.w[name]
        return self.w[name] + self.p[f"{at}.b"] @ self.p[f"{at}.a"]

    def video(self, images):
        frames = [self.embed(image) for image in images]
        sequences = [([(x[0], 1)], [(token, 1) for token in x[1:]]) for x in frames]
        patches = len(frames[0]) - 1
        nothing = torch.zeros_like(frames[0][0])
        padding = ([(nothing, 0)], [(nothing, 0)] * patches)
        sequences += [padding] * (4 - len(sequences))
        for i in range(self.layers["vision"]):
            sequences = self.merging_layer(i, sequences)
        classes = torch.stack([token for token, size in sequences[0][0] if size])
        return self.norm(classes, "visual.ln_post") @ self.w["visual.proj"]

    def merging_layer(self, i, sequences):
        at = f"{self.at['vision']}.{i}"
        last = i == self.layers["vision"] - 1
        joins = i - (self.layers["vision"] - 1 - len(self.groups))
        before = None
        if joins >= 0 and not last:
            table = self.p[f"{at}.positions.table"]
            sequences, before = self.joined(sequences, table, self.groups[joins])
        out = []
        for number, (classes, patches) in enumerate(sequences):
            if before is not None:
                count = int(self.method.joined_share * (len(classes) + len(patches)))
                patches = self.merged(patches, before[number], len(classes), count)
            tokens = classes + patches
            x = torch.stack([token for token, _ in tokens])
            sizes = torch.tensor([size for _, size in tokens])
            x, keys = self.weighed_attention(x, sizes, f"{at}.block", f"{at}.low_rank")
            patches = list(zip(x[len(classes) :], sizes[len(classes) :].tolist(), strict=True))
            if not last:
                count = int(self.method.share * len(tokens)) if before else self.method.frame_merges
                patches = self.merged(patches, keys[len(classes) :], len(classes), count)
            tokens = list(zip(x[: len(classes)], sizes.tolist(), strict=False)) + patches
            x = torch.stack([token for token, _ in tokens])
            x = x + self.mlp(self.norm(x, f"{at}.block.ln_2"), f"{at}.block.mlp")
            tokens = [(token, size) for token, (_, size) in zip(x, tokens, strict=True)]
            out.append((tokens[: len(classes)], tokens[len(classes) :]))
        return out

    def joined(self, sequences, table, group):
        """Neighbours as one sequence, with their positions; the patches as they were."""
        out, before = [], []
        for start in range(0, len(sequences), group):
            classes, patches, plain = [], [], []
            for f in range(start, start + group):
                classes += [(x + table[f], size) for x, size in sequences[f][0]]
                patches += [(x + table[f], size) for x, size in sequences[f][1]]
                plain += [x for x, _ in sequences[f][1]]
            out.append((classes, patches))
            before.append(plain)
        return out, before

    def merged(self, patches, metric, num_classes, count):
        """The `count` best pairs of a patch at an even place and one at an odd place."""
        count = min(count, len(patches) // 2)
        sources = [j for j in range(len(patches)) if (num_classes + j) % 2 == 0]
        targets = [j for j in range(len(patches)) if (num_classes + j) % 2 == 1]
        pairs = []
        for s in sources:
            real = [t for t in targets if patches[t][1]]
            cosines = {t: torch.cosine_similarity(metric[s], metric[t], dim=0).item() for t in real}
            best = max(cosines, key=cosines.get) if cosines else targets[0]
            likeness = cosines.get(best, -float("inf")) if patches[s][1] else float("inf")
            pairs.append((-likeness, s, best))
        gone = sorted(pairs)[:count]
        into = {t: [t] for t in targets}
        for _, s, t in gone:
            into[t].append(s)
        left = [patches[s] for s in sources if s not in {s for _, s, _ in gone}]
        return left + [self.mean([patches[j] for j in into[t]]) for t in targets]

    def mean(self, tokens):
        total = sum(size for _, size in tokens)
        if not total:
            return torch.zeros_like(tokens[0][0]), 0
        return sum(size * x for x, size in tokens) / total, total

    def weighed_attention(self, x, sizes, at, low_rank):
        """x plus its attention, where a token of n patches is seen n times; the mean key of the heads."""
        inner = self.norm(x, f"{at}.ln_1")
        weight = self.w[self.plain(f"{at}.attn.in_proj_weight")]
        weight = weight + self.p[f"{low_rank}.b"] @ self.p[f"{low_rank}.a"]
        q, k, v = (inner @ weight.T + self.w[self.plain(f"{at}.attn.in_proj_bias")]).chunk(3, dim=-1)
        size, out, keys = x.shape[-1] // HEADS["vision"], [], 0
        for h in range(HEADS["vision"]):
            part = slice(h * size, (h + 1) * size)
            seen = (q[:, part] @ k[:, part].T / size**0.5).exp() * sizes
            total = seen.sum(-1, keepdim=True)
            out.append(seen / total.where(total > 0, 1) @ v[:, part])
            keys = keys + k[:, part] / HEADS["vision"]
        out = torch.cat(out, -1) @ self.w[self.plain(f"{at}.attn.out_proj.weight")].T
        return x + out + self.w[self.plain(f"{at}.attn.out_proj.bias")], keys

    def norm(self, x, name):
        return super().norm(x, self.plain(name))

    def mlp(self, x, name):
        return super().mlp(x, self.plain(name))

    @staticmethod
    def plain(name):
        """The name of a weight of the CLIP before its block was wrapped."""
        return name.replace(".block.", ".")
