"""The tuning methods by name. One file per paper; a new method is a file and a line in METHODS.

A method is a frozen dataclass whose fields are its options, with an `attach` that thaws parameters of a
frozen CLIP or wraps its blocks with new ones. VL-Prompt of the Cross-Modal Adapter paper is `vop` with
`pooling: query_aware`.
"""

from vopcore.methods.adapter import AdapterAttn, AdapterFFN
from vopcore.methods.attach import tune, tuned
from vopcore.methods.base import Method
from vopcore.methods.baselines import Bias, Full, Partial, Proj, ZeroShot
from vopcore.methods.cross_modal import CrossModalAdapter
from vopcore.methods.dgl import DGL
from vopcore.methods.lora import LoRA
from vopcore.methods.maple import MaPLe
from vopcore.methods.mv_adapter import MVAdapter
from vopcore.methods.prompt import VPT, CoOp
from vopcore.methods.prompt_switch import PromptSwitch
from vopcore.methods.saved import assign, load_tuned, save_tuned
from vopcore.methods.tempme import TempMe
from vopcore.methods.vop import VoP, VoPC, VoPF, VoPFC, VoPFP, VoPP

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "full": Full,
    "bias": Bias,
    "proj": Proj,
    "partial": Partial,
    "adapter_attn": AdapterAttn,
    "adapter_ffn": AdapterFFN,
    "vop": VoP,
    "vop_p": VoPP,
    "vop_c": VoPC,
    "vop_f": VoPF,
    "vop_fp": VoPFP,
    "vop_fc": VoPFC,
    "cross_modal_adapter": CrossModalAdapter,
    "coop": CoOp,
    "vpt": VPT,
    "maple": MaPLe,
    "lora": LoRA,
    "tempme": TempMe,
    "prompt_switch": PromptSwitch,
    "dgl": DGL,
    "mv_adapter": MVAdapter,
}

__all__ = ["METHODS", "Method", "assign", "load_tuned", "save_tuned", "tune", "tuned"]
